"""Decoding on one GPU, as a table for docs/recipe.md: tokens a second, and bytes read over what the card can read.

    python benchmarks/gpu_decoding.py                                depths 12 and 20, 1 to 128 rows, with our kernels and without
    python benchmarks/gpu_decoding.py --depths 20 --rows 1 --length 1

A step draws one token of each row (temperature 1) behind --length others. It reads the matrices once, and of each row the keys
and values that its layers' windows reach. The ceiling is the best rate at which torch sums 2 GB, measured in the same run.
"Plain" is `--engine torch`: attention over gathered copies, one kernel launched after the other. "Compiled" is ours with the
recorded step through torch.compile, which fuses its small kernels and which nutshell does not do: compiling takes a minute for
each number of rows. Without CUDA: exit code 2.
"""

import argparse
import gc
import statistics
import sys
import time

import torch

from nutshell.infer.blocks import Chunk
from nutshell.infer.sampling import Draw
from nutshell.infer.torch_runner import TorchRunner
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.flops import matrix_parameters
from nutshell.model.kv_blocks import blocks_of
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.runtime import DTYPES

TARGET = 0.7  # of the ceiling, for one row at depth 20 in bf16
WARMUP, TIMED = 5, 50
KERNELS = ["plain", "ours", "compiled"]


def read_rate(device: torch.device, size: int = 2 << 30) -> float:
    """Bytes a second."""
    numbers, seconds = torch.ones(size // 4, device=device), []
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum().item()
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)


def bytes_of_step(shape: ModelConfig, rows: int, length: int, bytes_of_a_number: int) -> int:
    keys = sum(min(window, length + 1) for window in shape.windows())
    return bytes_of_a_number * (matrix_parameters(shape) + 2 * rows * keys * shape.kv_heads * shape.head_dim)


def step_seconds(model, shape: ModelConfig, rows: int, length: int, kernels: str) -> float:
    """Median of a step of `rows` rows that hold `length` tokens each."""
    runner = TorchRunner(model, shape.vocab_size, rows, length + 1, kernels=kernels != "plain")
    if kernels != "plain" and runner.graphs is None:
        raise SystemExit("our kernels do not run here; see the line above.")
    if kernels == "compiled":
        torch._dynamo.reset()
        runner.graphs.step = torch.compile(runner.graphs.step, dynamic=False, fullgraph=True)
    each = blocks_of(length + 1)
    draw = Draw(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5)
    chunks = [Chunk([1], length, 1, range(row * each, (row + 1) * each), draw) for row in range(rows)]
    seconds = []
    for _ in range(WARMUP + TIMED):
        started = time.perf_counter()
        runner.forward(chunks)  # ends with the tokens on the CPU
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARMUP:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32, 64, 128])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS[:2])
    parser.add_argument("--device", default="cuda", help="cpu: plain torch alone, to try this script")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks/gpu_decoding.py needs a CUDA device, and torch sees none here. On CPU: benchmarks/engine.py",
            file=sys.stderr,
        )
        return 2
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    ceiling = read_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.dtype}, vocabulary {options.vocab_size:,}, {options.length} tokens a row")
    print(f"Ceiling: {ceiling / 1e9:,.0f} GB/s\n")
    print("| depth | rows | kernels | ms a step | tokens/s | GB/s | of the ceiling |\n|---|---|---|---|---|---|---|")
    for depth in options.depths:
        shape = make_shape(Recipe(depth=depth), depth, options.vocab_size)
        model = build_model(shape).to(device).set_precision(dtype).for_inference()
        length = min(options.length, shape.context - 1)
        for rows in options.rows:
            for kernels in options.kernels if device.type == "cuda" else ["plain"]:
                gc.collect()
                seconds = step_seconds(model, shape, rows, length, kernels)
                rate = bytes_of_step(shape, rows, length, dtype.itemsize) / seconds
                print(f"| {depth} | {rows} | {kernels} | {1e3 * seconds:.2f} | {rows / seconds:,.0f} "
                      f"| {rate / 1e9:,.0f} | {rate / ceiling:.0%} |", flush=True)  # fmt: skip
    print(f"\nTarget: {TARGET:.0%} of the ceiling for one row at depth 20 in bfloat16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
