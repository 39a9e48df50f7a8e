"""What one shape takes here: seconds of a training step, tokens a second, MFU, memory, and decoding as the engine does it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nutshell.model.flops import flops_per_token, matrix_parameters
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape, named_depth
from nutshell.runtime import Runtime, peak_memory_bytes
from nutshell.train.calibrate import TIMED_STEPS, WARMUP_STEPS, decoding_seconds, halve_until_it_fits, step_seconds, timed_rows
from nutshell.train.prepare import hardware_of
from nutshell.train.prepare_tokenizer import expected_vocab_size

DECODED_ROWS = (1, 16)
"""Replies decoded together: one reader, and as many as the server takes."""


def bench(recipe: Recipe, runtime: Runtime, trace: Path | None = None) -> dict[str, Any]:
    """Measure the model that a recipe names, with drawn weights on random tokens; a trace of a few more steps goes to `trace`.

    ValueError where the recipe names no depth, or where not one row fits the memory.
    """
    depth = named_depth(recipe)
    if not depth:
        raise ValueError(
            "the recipe leaves its depth to the plan, and bench times one model. Give --depth 4, or a trained model."
        )
    shape = make_shape(recipe, depth, expected_vocab_size(recipe, runtime))
    horizon = recipe.tokens_per_parameter * matrix_parameters(shape)
    wanted = timed_rows(recipe, runtime, hardware_of(runtime), shape, horizon)
    rows, (steps, _) = halve_until_it_fits(wanted, runtime, lambda rows: step_seconds(shape, rows, runtime, recipe))
    step = statistics.median(steps[WARMUP_STEPS:])
    rate = rows * shape.context * runtime.world_size / step
    peak = (runtime.peak_flops or 0.0) * runtime.world_size
    found = {
        "depth": depth, "width": shape.width, "context": shape.context, "rows": rows, "device": runtime.device.type,
        "dtype": runtime.dtype_name, "ranks": runtime.world_size, "threads": runtime.threads,
        "first_step_seconds": steps[0], "step_seconds": step, "tokens_per_second": rate,
        "mfu": rate * flops_per_token(shape, shape.context) / peak if peak else None,
        "peak_memory_bytes": peak_memory_bytes(runtime.device),
        "decode_tokens_per_second": {n: n / decoding_seconds(shape, n, shape.context // 2, runtime) for n in DECODED_ROWS},
    }  # fmt: skip
    if trace:
        write_trace(trace, lambda: step_seconds(shape, rows, runtime, recipe))
    return found


def write_trace(path: Path, steps: Callable[[], object]) -> None:
    """Profile `steps`, print where the time goes, and write the trace for chrome://tracing or https://ui.perfetto.dev."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        steps()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40))
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # its suffix decides whether the trace is compressed
    profiler.export_chrome_trace(str(partial))
    partial.replace(path)


def describe(found: dict[str, Any]) -> str:
    """The measurements in four lines, for people."""
    memory, mfu = found["peak_memory_bytes"], found["mfu"]
    decode = ", ".join(f"{rate:,.0f} with {n} at once" for n, rate in found["decode_tokens_per_second"].items())
    model = f"depth {found['depth']}, width {found['width']}; {found['rows']} rows x {found['context']} tokens a rank"
    compute = f"{found['device']}, {found['dtype']}, {found['ranks']} rank(s), {found['threads']} thread(s)"
    timed = f"median of {TIMED_STEPS}; the first took {1e3 * found['first_step_seconds']:,.0f} ms"
    return "\n".join([
        f"model    {model}; {compute}",
        f"step     {1e3 * found['step_seconds']:,.1f} ms ({timed})",
        f"speed    {found['tokens_per_second']:,.0f} tokens/s" + (f", mfu {mfu:.1%}" if mfu else ", mfu not known (no peak)"),
        f"memory   {memory / 1e6:,.0f} MB at most" if memory else "memory   not known here",
        f"decode   tokens/s: {decode}",
    ])  # fmt: skip
