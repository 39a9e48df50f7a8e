"""What a checkpoint costs training: seconds a save takes away, and their share where one is saved every 30 s.

    python benchmarks/saving.py                    depth 4, width 256, vocabulary 8192, 4096 tokens a step
    python benchmarks/saving.py --depth 12 --tokens-per-step 65536 --vocab-size 32768   any other

Blocks of the same number of steps take turns: without a save, with one that a thread writes (as runs do), and with one written in
the foreground. A block is longer than a write, so the thread's competition for the cores is in the difference. Medians count.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.report.provenance import processor
from nutshell.run.checkpoints import Writer
from nutshell.runtime import start_runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.optim import MuonAdamW, group_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--interval", type=float, default=30.0, help="seconds between saves, for the share")
    parser.add_argument("--block", type=float, default=4.0, help="seconds of steps in a block")
    parser.add_argument("--repeats", type=int, default=8, help="blocks of each kind")
    parser.add_argument("--out", default="", help="folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--threads", type=int, default=0, help="0 takes all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    runtime = start_runtime(device=options.device, dtype=options.dtype, threads=options.threads)
    tok = Tokenizer.train(primer.documents(0, 1_000_000), vocab_size=options.vocab_size)
    recipe = Recipe(depth=options.depth, width=options.width)
    shape = make_shape(recipe, options.depth, tok.vocab_size, tok.bos_id)
    model = GPT(shape).to(runtime.device)
    model.set_precision(runtime.dtype, runtime.attention)
    step_model = torch.compile(model) if runtime.compiled else model
    groups = group_parameters(model, recipe.optimizer, width=shape.width, tokens_per_step=options.tokens_per_step)
    optimizer = MuonAdamW(groups, runtime.dtype)
    rows = max(1, options.tokens_per_step // shape.context)
    ids = torch.randint(0, shape.vocab_size, (rows, shape.context + 1), device=runtime.device)
    folder = Path(tempfile.mkdtemp(dir=options.out or None))
    writer, snapshots, writes, cpu = Writer(), [], [], []

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        step_model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.reduce()
        optimizer.step(lr=0.01, momentum=0.9, decay=0.0)
        runtime.synchronize()

    def save(how: str) -> None:
        start = time.perf_counter()
        training = {"step": 1, "loader": {"carry": [list(range(1000))] * 100}}
        snapshot = checkpoint.take_snapshot(model, tok, training=training, tensors=optimizer.state_dict())
        snapshots.append(time.perf_counter() - start)

        def write() -> None:
            start, used = time.perf_counter(), time.thread_time()
            checkpoint.write_snapshot(folder / "step-000001", snapshot)
            writes.append(time.perf_counter() - start)
            cpu.append(time.thread_time() - used)

        writer.start(write)
        if how == "foreground":
            writer.wait()

    def block(how: str, steps: int) -> tuple[float, float]:
        """Seconds by the clock, and of all CPUs until the write is over."""
        start, used = time.perf_counter(), time.process_time()
        if how != "none":
            save(how)
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - start
        if writer.busy:
            print("a write outlasts its block: give a longer --block")
        writer.wait()
        return seconds, time.process_time() - used

    try:
        block("foreground", 3)  # allocates what later ones use again
        start = time.perf_counter()
        for _ in range(5):
            step()
        steps = max(2, round(options.block / ((time.perf_counter() - start) / 5)))
        times: dict[str, list[tuple[float, float]]] = {"none": [], "thread": [], "foreground": []}
        for _ in range(options.repeats):
            for how in times:
                times[how].append(block(how, steps))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    plain = statistics.median(seconds for seconds, _ in times["none"])
    count = sum(p.numel() for p in model.parameters())
    print(processor())
    print(f"{runtime.device} {runtime.dtype_name}, {runtime.threads} threads; {count:,} parameters, {size / 1e6:,.0f} MB")
    print(f"a step: {plain / steps * 1e3:.1f} ms; {steps} steps a block, {options.repeats} blocks of each kind in turn")
    for name, values in (("copying in memory", snapshots), ("writing, clock", writes), ("writing, CPU of its thread", cpu)):
        print(f"{name:28} {statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f})")
    for how in ("thread", "foreground"):
        for place, what in enumerate(("clock", "CPU")):
            costs = [one[place] - other[place] for one, other in zip(times[how], times["none"], strict=True)]
            low, cost, high = statistics.quantiles(costs, n=4)
            share = f": {cost / options.interval:.2%} at one every {options.interval:g} s; target 2%" if what == "clock" else ""
            print(f"a save, {how}, {what:5} {cost:.3f} s of training (quartiles {low:.3f} and {high:.3f}){share}")


if __name__ == "__main__":
    main()
