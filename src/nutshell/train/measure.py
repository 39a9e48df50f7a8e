"""What a shape takes on this machine: a few real steps, timed, before anything is decided."""

from __future__ import annotations

import statistics
import time

import torch

from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.flash import KERNELS, document_offsets
from nutshell.model.flops import flops_per_token, matrix_parameters
from nutshell.model.fp8 import quantise_weights
from nutshell.model.kv_cache import KVCache
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.plan import (
    BUDGET_DEPTHS,
    EVALUATION_SHARE,
    Hardware,
    Timing,
    batch_tokens,
    make_shape,
)  # fmt: skip
from nutshell.train.recipe import Recipe

WARMUP_STEPS = 2
TIMED_STEPS = 5
DOCUMENT_TOKENS = 700


def time_training(config: ModelConfig, rows: int, runtime: Runtime, recipe: Recipe) -> float:
    """Median seconds of a training step of `rows` rows, optimizer included, on random tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config).to(runtime.device)
        ids = torch.randint(1, config.vocab_size, (rows, config.context + 1))
    ids[:, ::DOCUMENT_TOKENS] = config.bos_id
    documents = (ids[:, :-1] == config.bos_id).cumsum(1)
    offsets = document_offsets(documents).to(runtime.device) if runtime.attention in KERNELS else None
    ids = ids.to(runtime.device)
    model.use(runtime.dtype, runtime.attention, fp8=runtime.fp8)
    step_model = torch.compile(model) if runtime.compiled else model
    tokens = rows * config.context
    groups = group_parameters(model, recipe.optimizer, width=config.width, tokens_per_step=tokens)
    optimizer = MuonAdamW(groups, runtime.dtype)
    seconds = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        for p in model.parameters():
            p.grad = None
        quantise_weights(model)
        step_model(ids[:, :-1], ids[:, 1:], offsets=offsets).backward()
        float(optimizer.shards.norm())
        optimizer.step(lr_scale=0.0, momentum=0.9, decay_scale=0.0)
        runtime.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP_STEPS:])


def time_decoding(config: ModelConfig, rows: int, length: int, runtime: Runtime) -> float:
    """Seconds of one decoding step of `rows` rows that hold about `length` tokens each."""
    model = build_model(config).to(runtime.device)
    model.use(runtime.dtype, runtime.attention)
    model = model.for_inference()
    length = min(length, config.context - 1)
    cache = KVCache(config, rows, device=runtime.device, dtype=runtime.dtype)
    every = torch.arange(rows, device=runtime.device)
    ids = torch.ones(rows, 1, dtype=torch.long, device=runtime.device)
    seconds = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        cache.lengths.fill_(length)
        start = time.perf_counter()
        model.decode(ids, cache, every)
        runtime.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP_STEPS:])


def measure(recipe: Recipe, runtime: Runtime, vocab_size: int, seconds_left: float) -> Hardware:
    """Time the depths a budget could afford, smallest first, until one clearly is too large; or the depth the recipe names."""
    rl = recipe.stages.rl
    timings: dict[int, Timing] = {}
    for depth in (recipe.depth,) if recipe.depth else BUDGET_DEPTHS:
        shape = make_shape(recipe, depth, vocab_size)
        tokens = recipe.tokens_per_parameter * matrix_parameters(shape)
        rows = max(1, (recipe.tokens_per_step or batch_tokens(tokens)) // shape.context)
        rows = min(rows, recipe.rows or rows, 32)
        if timings:
            # Larger models run at about the same FLOP/s: do not build what is far out of reach.
            last = max(timings)
            rate = timings[last].tokens_per_second * flops_per_token(make_shape(recipe, last, vocab_size), shape.context)
            expected = rate / flops_per_token(shape, shape.context)
            if expected * seconds_left * recipe.stages.pretrain.share < 0.7 * tokens:
                break
        rate = rows * shape.context / time_training(shape, rows, runtime, recipe)
        decode = time_decoding(shape, rl.prompts * rl.samples, 64 + rl.max_tokens // 2, runtime)
        timings[depth] = Timing(tokens_per_second=runtime.agree(rate) * runtime.world_size, decode_seconds=runtime.agree(decode))
        if timings[depth].tokens_per_second * seconds_left * (1 - EVALUATION_SHARE) * recipe.stages.pretrain.share < tokens:
            break
    return Hardware(
        device=runtime.device.type, dtype=runtime.dtype_name, world_size=runtime.world_size, threads=runtime.threads,
        timings=timings, seconds_left=seconds_left,
    )  # fmt: skip
