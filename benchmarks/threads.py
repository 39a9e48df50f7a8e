"""Whether two threads are ever slower than one: decoding beside programs that take the cores.

    python benchmarks/threads.py [--depth 12 --width 768] [--kind bfloat16]

Beside 0, 1 and 2 spinning processes, one reply is decoded by a decoder with one thread and by one that may use --threads, by
turns in one process. A line has the median and the mean milliseconds of a step of each, and the ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from engine import random_model

from nutshell.infer import native
from nutshell.infer.blocks import Chunk
from nutshell.report.provenance import processor

SPIN = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


def make_runner(model, threads: int, options: argparse.Namespace) -> native.NativeRunner:
    torch.set_num_threads(threads)
    runner = native.NativeRunner(model, options.vocab_size, 1, 256, int8=options.kind == "int8")
    runner.forward([Chunk([1] * 64, 0, -1, range(16))])
    return runner


def step_times(runner: native.NativeRunner, seconds: float) -> list[float]:
    """Of single tokens behind 64 others, for so long."""
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        runner.forward([Chunk([1], 64 + len(found) % 128, 1, range(16))])
        found.append(1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--kind", choices=("float32", "bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each decoder in a round")
    options = parser.parse_args()
    model = random_model(options).set_precision(torch.float32 if options.kind == "float32" else torch.bfloat16).for_inference()
    one, more = (make_runner(model, threads, options) for threads in (1, options.threads))
    print(f"{processor()}, load {os.getloadavg()[0]:.1f}; depth {options.depth}, width {options.width}, {options.kind}; "
          f"ms a step, median (mean), one thread and up to {options.threads}")  # fmt: skip
    for busy in (0, 1, 2):
        spin = SPIN.format(seconds=2 * options.rounds * options.seconds + 1)
        neighbours = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(busy)]
        time.sleep(0.3)
        pairs = [(step_times(one, options.seconds), step_times(more, options.seconds)) for _ in range(options.rounds)]
        for process in neighbours:
            process.wait()
        medians, means = ([[f(times) for times in pair] for pair in pairs] for f in (statistics.median, statistics.fmean))
        a, b, c, d = (statistics.median(column) for table in (medians, means) for column in zip(*table, strict=True))
        ratios = [statistics.median(second / first for first, second in table) for table in (medians, means)]
        print(f"  beside {busy} busy: {a:6.2f} ({c:6.2f}), {b:6.2f} ({d:6.2f}); ratio {ratios[0]:.2f} ({ratios[1]:.2f})")


if __name__ == "__main__":
    main()
