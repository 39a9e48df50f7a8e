"""Tokens per second, MFU and memory of pretraining on one GPU, as a table for docs/recipe.md.

    python benchmarks/gpu.py                                 depths 12 and 20, every kernel that runs here, fp8 off and on
    python benchmarks/gpu.py --depths 12 --attention flash3  less

A step is forward, backward and optimizer on the most rows that fit the device (a power of two), in documents of 700 tokens.
Two steps and their compilation are left out; the median of five counts. FLOPs are counted with the real windows; MFU is the
share of the card's dense bf16 peak, of fp8 steps too, and "n/a" where the peak is not known. Without CUDA: exit code 2.
"""

import argparse
import gc
import statistics
import sys

import torch

from nutshell.model.flops import flops_per_token
from nutshell.model.probe import PREFERENCE, choose_attention, first_that_runs
from nutshell.plan.hardware import peak_flops
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.report.provenance import processor
from nutshell.runtime import Runtime, refuse_fp8, start_runtime
from nutshell.train.calibrate import WARMUP_STEPS, step_seconds

TARGET = 0.65  # bf16 MFU at depth 12 on one H100 or H200
MOST_ROWS = 128


def kernels_that_run(runtime: Runtime) -> list[str]:
    return [k for k in PREFERENCE if k == "blocked" or first_that_runs((k, "blocked"), runtime.device, runtime.dtype)[0] == k]


def has_fp8(runtime: Runtime) -> bool:
    try:
        refuse_fp8(runtime.device, torch.cuda.get_device_capability(runtime.device), runtime.dtype_name)
    except ValueError:
        return False
    return True


def fitted(shape, runtime: Runtime, recipe: Recipe, rows: int) -> tuple[int, float, int]:
    """(rows, seconds of a step, peak bytes) for the most rows of at most `rows` that fit."""
    while True:
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(runtime.device)
        try:
            seconds = statistics.median(step_seconds(shape, rows, runtime, recipe)[0][WARMUP_STEPS:])
            return rows, seconds, torch.cuda.max_memory_allocated(runtime.device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and compiled code may wrap it
            if rows == 1 or "out of memory" not in str(error):
                raise
        rows //= 2  # outside the handler: there the failed step's tensors are still held by its traceback


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--attention", nargs="+", choices=PREFERENCE, help="default: all that run here")
    parser.add_argument("--no-fp8", action="store_true")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device, and torch sees none here. On CPU: benchmarks/training.py", file=sys.stderr)
        return 2
    runtime = start_runtime(device="cuda", dtype=options.dtype, choose_attention=choose_attention, gpu_peak_flops=peak_flops)
    fp8 = [False] if options.no_fp8 or not has_fp8(runtime) else [False, True]
    kernels = options.attention or kernels_that_run(runtime)
    name = torch.cuda.get_device_name(runtime.device)
    print(f"{name}, {processor()}, torch {torch.__version__}, {runtime.dtype_name}, vocabulary {options.vocab_size:,}\n")
    print("| depth | attention | fp8 | rows | tokens/s | MFU | peak memory |\n|---|---|---|---|---|---|---|")
    best = 0.0
    for depth in options.depths:
        recipe = Recipe(depth=depth)
        shape = make_shape(recipe, depth, options.vocab_size)
        for kernel in kernels:
            for use_it in fp8:
                variant = Runtime(**{**vars(runtime), "attention": kernel, "fp8": use_it})
                rows, seconds, peak = fitted(shape, variant, recipe, MOST_ROWS)
                rate = rows * shape.context / seconds
                mfu = rate * flops_per_token(shape, shape.context) / runtime.peak_flops if runtime.peak_flops else None
                if depth == 12 and not use_it:
                    best = max(best, mfu or 0.0)
                print(
                    f"| {depth} | {kernel} | {'yes' if use_it else 'no'} | {rows} | {rate:,.0f} "
                    f"| {'n/a' if mfu is None else f'{mfu:.1%}'} | {peak / 2**30:.1f} GiB |", flush=True,
                )  # fmt: skip
    if best:
        print(f"\nBest bf16 MFU at depth 12: {best:.1%}; target {TARGET:.0%} on an H100 or H200")
    return 0


if __name__ == "__main__":
    sys.exit(main())
