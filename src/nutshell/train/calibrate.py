"""How fast a shape trains and decodes on this machine: a few real steps, timed before the plan is made."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

import torch

from nutshell.infer.blocks import Chunk
from nutshell.infer.native import NativeRunner, why_not
from nutshell.infer.sampling import Sampling
from nutshell.infer.torch_runner import TorchRunner
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.flops import flops_per_token, matrix_parameters
from nutshell.model.kv_blocks import blocks_of
from nutshell.plan.cost import EVALUATION_ROWS
from nutshell.plan.hardware import ASSUMED_MFU, Hardware, Timing
from nutshell.plan.memory import fitting_rows, most_rows
from nutshell.plan.plan import BUDGET_DEPTHS, Data, affordable, batch_tokens, choose_depth, with_micro_batches_of
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import Plan
from nutshell.plan.schedule import Rates
from nutshell.plan.shape import make_shape, named_depth
from nutshell.runtime import Runtime
from nutshell.train.build import compile_model, parallelize
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import ToDevice
from nutshell.train.step import LossScaler, next_token_loss, train_step

T = TypeVar("T")

WARMUP_STEPS = 2
TIMED_STEPS = 5
DOCUMENT_TOKENS = 700
SHORTEST_TIMING = 0.1  # seconds of decoding: a few steps of a small model are noise
LONGEST_TIMING = 10.0
TIMING_SHARE = 0.02
"""The depth that a budget chooses is timed again for this share of the budget, at most `LONGEST_TIMING` seconds: on a shared
machine a run goes at the mean of many steps, not at the median of five."""


def step_seconds(
    config: ModelConfig, rows: int, runtime: Runtime, recipe: Recipe, *, at_least: float = 0.0
) -> tuple[list[float], float]:
    """(seconds of each training step of `rows` rows a rank, the two warm-up steps first; of a forward pass), on random tokens.

    Real steps: compiled, and sharded over the ranks, as training takes them. `TIMED_STEPS` are timed, and more where those took
    less than `at_least` seconds: rank 0's clock decides how many, since no rank may leave a step that the others take. Rates are
    0, so the drawn weights stay; the output projections are drawn too, because products with zeros would be those of the first
    step only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
        for name, weight in model.named_parameters():
            if name.endswith(("out.weight", "down.weight", "o_proj.weight", "down_proj.weight")):
                torch.nn.init.normal_(weight, std=0.02)
        ids = torch.randint(1, config.vocab_size, (rows, config.context + 1))
    ids[:, ::DOCUMENT_TOKENS] = config.bos_id
    batch = ToDevice(runtime.device, config.bos_id, runtime.attention)((ids[:, :-1], ids[:, 1:]))
    sharded = recipe.shard == "weights" and runtime.world_size > 1
    model.to(torch.device("cpu") if sharded else runtime.device).set_precision(runtime.dtype, runtime.attention, fp8=runtime.fp8)
    zero = parallelize(model, runtime, sharded)
    step_model = model if sharded else compile_model(model, runtime)
    groups = group_parameters(model, recipe.optimizer, width=config.width, tokens_per_step=rows * config.context)
    optimizer = MuonAdamW(groups, runtime.dtype, zero, muon_beta2=recipe.optimizer.muon_beta2)
    scaler, rates = LossScaler.for_dtype(runtime.dtype), Rates(lr=0.0, momentum=0.9, decay=0.0)
    seconds: list[float] = []
    steps = WARMUP_STEPS + TIMED_STEPS
    while len(seconds) < steps:
        seconds.append(train_step(step_model, optimizer, [batch], rates, runtime, scaler).seconds)
        if len(seconds) == steps == WARMUP_STEPS + TIMED_STEPS:
            timed = seconds[WARMUP_STEPS:]
            missing = max(0.0, at_least - sum(timed)) / statistics.median(timed)
            steps += math.ceil(runtime.agree(missing))
    forward = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            float(next_token_loss(model, batch))
            forward.append(time.perf_counter() - start)
    return seconds, statistics.median(forward)


def probe_micro_batch(plan: Plan, runtime: Runtime, step: Callable[..., Any] = step_seconds) -> Plan:
    """The plan with the micro-batch size that a real step fits this GPU's memory with: the planned one, halved where it does not.

    The estimate of memory does not know who else uses the card. ValueError where not even one row fits.
    """
    size, _ = halve_until_it_fits(plan.micro_batch_size, runtime, lambda rows: step(plan.model, rows, runtime, plan.recipe))
    return plan if size == plan.micro_batch_size else with_micro_batches_of(plan, size)


def halve_until_it_fits(size: int, runtime: Runtime, attempt: Callable[[int], T]) -> tuple[int, T]:
    """(the largest of size, size / 2, size / 4 ... that `attempt` does not run out of memory with, its result).

    All ranks take the same size. They hold the same, so they run out together; ValueError where one row is too much.
    """
    while True:
        result, failed = None, torch.zeros(())
        try:
            result = attempt(size)
        except torch.OutOfMemoryError:
            failed += 1
        # Outside the handler: there the failed step's tensors are still held by its traceback.
        if not runtime.total(failed).item():
            return size, cast(T, result)
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        if size == 1:
            raise ValueError(
                "one row does not fit this GPU's memory as it is now. Use a smaller --depth or --context, end what else uses the "
                "GPU (nvidia-smi lists it), or, on several GPUs, --shard weights."
            )
        size //= 2


def decoding_seconds(config: ModelConfig, rows: int, length: int, runtime: Runtime) -> float:
    """Median seconds of a decoding step of `rows` replies that hold `length` tokens each: computed and drawn as in the engine."""
    model = build_model(config).to(runtime.device).set_precision(runtime.dtype, runtime.attention).for_inference()
    length = min(length, config.context - 1)
    make = NativeRunner if why_not(model) is None else partial(TorchRunner, kernels=True)
    runner = make(model, config.vocab_size, rows, length + 1)
    each = blocks_of(length + 1)
    draw = Sampling().draw(Random(0))
    chunks = [Chunk([1], length, 1, range(row * each, (row + 1) * each), draw) for row in range(rows)]
    seconds: list[float] = []
    while len(seconds) < WARMUP_STEPS + TIMED_STEPS or sum(seconds) < SHORTEST_TIMING:
        start = time.perf_counter()
        runner.forward(chunks)
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
        decode_seconds=runtime.agree(decoding_seconds(shape, rl.prompts * rl.samples, length, runtime)),
        reply_seconds=runtime.agree(decoding_seconds(shape, EVALUATION_ROWS, length, runtime)),
        forward_tokens_per_second=runtime.agree(tokens / forward),
        startup_seconds=runtime.agree(max(0.0, steps[0] - step)),
    )


def first_depth(recipe: Recipe, hardware: Hardware, vocab_size: int, peak_flops: float, data: Data) -> int:
    """Where timing begins on a GPU, since every depth has to be compiled: the largest depth affordable at a third of the assumed
    MFU."""
    found = BUDGET_DEPTHS[0]
    for depth in BUDGET_DEPTHS:
        shape = make_shape(recipe, depth, vocab_size)
        rate = hardware.world_size * peak_flops * ASSUMED_MFU / 3 / flops_per_token(shape, shape.context)
        if affordable(recipe, replace(hardware, timings={depth: Timing(tokens_per_second=rate)}), depth, vocab_size, data):
            found = depth
    return found


def timed_rows(recipe: Recipe, runtime: Runtime, hardware: Hardware, shape: ModelConfig, tokens: float) -> int:
    """The micro-batch size to time a horizon of `tokens` with; ValueError where not even one row fits the memory."""
    step_rows = (recipe.tokens_per_step or batch_tokens(tokens)) // (shape.context * runtime.world_size)
    most = most_rows(shape, hardware, recipe.shard)
    return max(1, min(step_rows, recipe.micro_batch_size or step_rows, 32, most))


def measure(recipe: Recipe, runtime: Runtime, hardware: Hardware, vocab_size: int, seconds_left: float, data: Data) -> Hardware:
    """Time the depths a budget could afford, smallest first, until one clearly is too large; or the depth the recipe names.

    All that a branch depends on is rank 0's, so every rank times the same depths. A depth that does not fit the memory ends the
    search; ValueError where that is the first.
    """
    hardware = replace(hardware, seconds_left=seconds_left)
    named = named_depth(recipe)
    peak = runtime.agree(runtime.peak_flops or 0.0)
    start = first_depth(recipe, hardware, vocab_size, peak, data) if runtime.compiled and peak else 1
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
            out_of_reach = expected * seconds_left * recipe.stages.pretrain.share < 0.7 * tokens
            if out_of_reach or not fitting_rows(shape, hardware, recipe.shard):
                break
        rows = timed_rows(recipe, runtime, hardware, shape, tokens)
        attempt = partial(time_depth, shape, runtime=runtime, recipe=recipe)
        batches[depth], timings[depth] = halve_until_it_fits(rows, runtime, attempt)
        if not affordable(recipe, replace(hardware, timings=timings), depth, vocab_size, data):
            break
    hardware = replace(hardware, timings=timings)
    if not runtime.compiled:
        depth = named or choose_depth(recipe, hardware, vocab_size, data)
        shape = make_shape(recipe, depth, vocab_size)
        longer = min(LONGEST_TIMING, TIMING_SHARE * seconds_left)
        steps = step_seconds(shape, batches[depth], runtime, recipe, at_least=longer)[0][WARMUP_STEPS:]
        rate = runtime.agree(batches[depth] * shape.context / statistics.fmean(steps)) * runtime.world_size
        hardware = replace(hardware, timings={**timings, depth: replace(timings[depth], tokens_per_second=rate)})
    return hardware
