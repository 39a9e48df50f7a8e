"""How much of this machine's matrix product rate pretraining keeps, and how quickly `nutshell --help` answers.

    python benchmarks/training.py                     the demo's shape
    python benchmarks/training.py --depth 12 --rows 32 --vocab-size 32768   any other

Prints the product rate (2048^2 on CPU, 8192^2 on a GPU, best of one second), then the training step (forward, backward,
optimizer) at the shape: tokens/s, FLOP/s counted with the real windows, and their ratio.
"""

import argparse
import statistics
import subprocess
import sys
import time

from nutshell.model.flops import flops_per_token
from nutshell.model.probe import choose_attention
from nutshell.plan.hardware import peak_flops
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.report.provenance import processor
from nutshell.runtime import matmul_flops, peak_memory_bytes, start_runtime
from nutshell.train.calibrate import WARMUP_STEPS, step_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    runtime = start_runtime(
        device=options.device, dtype=options.dtype, choose_attention=choose_attention, gpu_peak_flops=peak_flops
    )
    recipe = Recipe(depth=options.depth, width=options.width, context=options.context)
    shape = make_shape(recipe, options.depth, options.vocab_size)
    size = 8192 if runtime.device.type == "cuda" else 2048
    print(f"{processor()}; {runtime.device} {runtime.dtype_name}, {runtime.threads} threads, {runtime.attention} attention")
    products, steps = [], []
    for _ in range(options.repeats):  # in turn, so that a noisy neighbour hits both
        products.append(matmul_flops(runtime.device, runtime.dtype, size, seconds=1.0))
        steps.append(statistics.median(step_seconds(shape, options.rows, runtime, recipe)[0][WARMUP_STEPS:]))
    tokens = options.rows * shape.context
    per_token = flops_per_token(shape, shape.context)
    ratios = [tokens / s * per_token / p for s, p in zip(steps, products, strict=True)]
    product, step = statistics.median(products), statistics.median(steps)
    print(f"matrix product {size}: {product / 1e9:,.0f} GFLOP/s")
    print(
        f"training depth {shape.depth} width {shape.width} vocabulary {shape.vocab_size} context {shape.context} "
        f"rows {options.rows}: {tokens / step:,.0f} tokens/s, {tokens / step * per_token / 1e9:,.0f} GFLOP/s"
    )
    print(f"share of the product rate: {statistics.median(ratios):.1%} (from {min(ratios):.1%} to {max(ratios):.1%}); target 55%")
    print(f"peak memory: {(peak_memory_bytes(runtime.device) or 0) / 2**30:.2f} GiB")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nutshell", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    print(f"nutshell --help: {statistics.median(seconds):.3f} s; target 0.3 s")


if __name__ == "__main__":
    main()
