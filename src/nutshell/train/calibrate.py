"""What a shape takes on this machine: a few real steps, timed, before anything is decided."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.flops import flops_per_token, matrix_parameters
from nutshell.model.kv_cache import KVCache
from nutshell.plan.cost import EVALUATION_ROWS
from nutshell.plan.estimate import most_rows
from nutshell.plan.hardware import ASSUMED_MFU, Hardware, Timing
from nutshell.plan.plan import BUDGET_DEPTHS, affordable, batch_tokens, choose_depth, make_shape, named_depth
from nutshell.plan.recipe import Recipe
from nutshell.plan.schedule import Rates
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import ToDevice
from nutshell.train.stage import compile_model
from nutshell.train.step import LossScaler, next_token_loss, train_step

WARMUP_STEPS = 2
TIMED_STEPS = 5
DOCUMENT_TOKENS = 700
LONGEST_TIMING = 10.0
STILL = Rates(lr=0.0, momentum=0.9, decay=0.0)
TIMING_SHARE = 0.02
"""The depth that a budget takes is timed again for this share of it, at most `LONGEST_TIMING` seconds: a run on a shared machine
takes the mean of many steps, not the median of five."""


def step_seconds(
    config: ModelConfig, rows: int, runtime: Runtime, recipe: Recipe, *, at_least: float = 0.0
) -> tuple[list[float], float]:
    """(seconds of each training step of `rows` rows, the two warm-up steps first; of a forward pass), on random tokens.

    At least `TIMED_STEPS` steps and `at_least` seconds of them are timed. Rates are 0, so the drawn weights stay; the output
    projections are drawn too, because products with zeros would be those of the first step only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config).to(runtime.device)
        for name, weight in model.named_parameters():
            if name.endswith(("out.weight", "down.weight", "o_proj.weight", "down_proj.weight")):
                torch.nn.init.normal_(weight, std=0.02)
        ids = torch.randint(1, config.vocab_size, (rows, config.context + 1))
    ids[:, ::DOCUMENT_TOKENS] = config.bos_id
    batch = ToDevice(runtime.device, config.bos_id, runtime.attention)((ids[:, :-1], ids[:, 1:]))
    batch.wait()
    model.set_precision(runtime.dtype, runtime.attention, fp8=runtime.fp8)
    step_model = compile_model(model, runtime)
    alone = replace(runtime, rank=0, world_size=1)  # each rank times its own steps, as many as it likes
    groups = group_parameters(model, recipe.optimizer, width=config.width, tokens_per_step=rows * config.context)
    optimizer = MuonAdamW(groups, runtime.dtype)
    seconds: list[float] = []
    while len(seconds) < WARMUP_STEPS + TIMED_STEPS or sum(seconds[WARMUP_STEPS:]) < at_least:
        seconds.append(train_step(step_model, optimizer, [batch], STILL, alone, LossScaler()).seconds)
    forward = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            float(next_token_loss(model, batch))
            forward.append(time.perf_counter() - start)
    return seconds, statistics.median(forward)


def time_training(config: ModelConfig, rows: int, runtime: Runtime, recipe: Recipe) -> float:
    """Median seconds of a training step of `rows` rows, optimizer included."""
    return statistics.median(step_seconds(config, rows, runtime, recipe)[0][WARMUP_STEPS:])


def time_decoding(config: ModelConfig, rows: int, length: int, runtime: Runtime) -> float:
    """Seconds of one decoding step of `rows` rows that hold about `length` tokens each."""
    model = build_model(config).to(runtime.device)
    model.set_precision(runtime.dtype, runtime.attention)
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


def time_depth(shape: ModelConfig, rows: int, runtime: Runtime, recipe: Recipe) -> Timing:
    """Everything that a plan needs to know of one shape."""
    rl = recipe.stages.rl
    steps, forward = step_seconds(shape, rows, runtime, recipe)
    length = 64 + rl.max_tokens // 2
    tokens, step = rows * shape.context, statistics.median(steps[WARMUP_STEPS:])
    return Timing(
        tokens_per_second=runtime.agree(tokens / step) * runtime.world_size,
        decode_seconds=runtime.agree(time_decoding(shape, rl.prompts * rl.samples, length, runtime)),
        reply_seconds=runtime.agree(time_decoding(shape, EVALUATION_ROWS, length, runtime)),
        forward_tokens_per_second=runtime.agree(tokens / forward),
        startup_seconds=runtime.agree(max(0.0, steps[0] - step)),
    )


def first_depth(recipe: Recipe, hardware: Hardware, vocab_size: int, peak_flops: float) -> int:
    """Where timing begins on a GPU, since every depth is compiled: the largest that a third of the assumed MFU affords."""
    found = BUDGET_DEPTHS[0]
    for depth in BUDGET_DEPTHS:
        shape = make_shape(recipe, depth, vocab_size)
        rate = hardware.world_size * peak_flops * ASSUMED_MFU / 3 / flops_per_token(shape, shape.context)
        if affordable(recipe, replace(hardware, timings={depth: Timing(tokens_per_second=rate)}), depth, vocab_size):
            found = depth
    return found


def measure(recipe: Recipe, runtime: Runtime, hardware: Hardware, vocab_size: int, seconds_left: float) -> Hardware:
    """Time the depths a budget could afford, smallest first, until one clearly is too large; or the depth the recipe names."""
    hardware = replace(hardware, seconds_left=seconds_left)
    named = named_depth(recipe)
    start = first_depth(recipe, hardware, vocab_size, runtime.peak_flops) if runtime.compiled and runtime.peak_flops else 1
    timings: dict[int, Timing] = {}
    batches: dict[int, int] = {}
    for depth in (named,) if named else [depth for depth in BUDGET_DEPTHS if depth >= start]:
        shape = make_shape(recipe, depth, vocab_size)
        tokens = recipe.tokens_per_parameter * matrix_parameters(shape)
        if timings:
            # Larger models run at about the same FLOP/s: do not build what is far out of reach.
            last = max(timings)
            rate = timings[last].tokens_per_second * flops_per_token(make_shape(recipe, last, vocab_size), shape.context)
            expected = rate / flops_per_token(shape, shape.context)
            if expected * seconds_left * recipe.stages.pretrain.share < 0.7 * tokens:
                break
        rows = max(1, (recipe.tokens_per_step or batch_tokens(tokens)) // (shape.context * runtime.world_size))
        rows = min(rows, recipe.rows or rows, 32, most_rows(shape, hardware))
        batches[depth], timings[depth] = rows, time_depth(shape, rows, runtime, recipe)
        if not affordable(recipe, replace(hardware, timings=timings), depth, vocab_size):
            break
    hardware = replace(hardware, timings=timings)
    if not runtime.compiled:
        depth = named or choose_depth(recipe, hardware, vocab_size)
        shape = make_shape(recipe, depth, vocab_size)
        longer = min(LONGEST_TIMING, TIMING_SHARE * seconds_left)
        steps = step_seconds(shape, batches[depth], runtime, recipe, at_least=runtime.agree(longer))[0][WARMUP_STEPS:]
        rate = runtime.agree(batches[depth] * shape.context / statistics.fmean(steps)) * runtime.world_size
        hardware = replace(hardware, timings={**timings, depth: replace(timings[depth], tokens_per_second=rate)})
    return hardware
