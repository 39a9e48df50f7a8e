"""Tiny Shakespeare by characters on a CPU: nanoGPT's own train.py, then recipes/shakespeare-char, on the same threads.

    python benchmarks/shakespeare.py --nanogpt FOLDER --text tinyshakespeare.txt

FOLDER is a checkout of nanoGPT; it trains with the CPU flags of its README (2,000 steps of 12 x 64 characters). Both train on the
first 90% of the text and are scored on the rest, in nats per character. nanoGPT's last model is scored twice: by its own estimate
(20 batches, as printed by train.py) and on all of the validation text in rows of 64 characters, which is how ours is scored; ours
sees `<|bos|>` in place of the first of the 64. Seconds are those of the whole command, with start and validations: of the clock,
and of the processor, which other work on the machine does not lengthen as much.
"""

import argparse
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet

from nutshell.report.provenance import processor

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare-char" / "config.toml"
FLAGS = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
PREPARE = """
import runpy, sys, types
sys.modules["requests"] = types.ModuleType("requests")  # the text is there already
runpy.run_path("data/shakespeare_char/prepare.py", run_name="__main__")
"""
SCORE = """
import numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict(saved["model"])
ids = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64))
rows = (len(ids) - 1) // 64
with torch.no_grad():
    losses = [model(ids[r * 64 : r * 64 + 64][None], ids[r * 64 + 1 : r * 64 + 65][None])[1].item() for r in range(rows)]
print("all", sum(losses) / rows)
"""


Seconds = tuple[float, float]
"""Of the clock, of the processor."""


def run(command: list[str], threads: int, folder: Path | None = None) -> tuple[str, Seconds]:
    """(what a command printed, its seconds); CalledProcessError where it fails."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, (time.perf_counter() - start, used)


def nanogpt(checkout: Path, text: Path, threads: int, scratch: Path) -> tuple[float, float, Seconds]:
    """(its own estimate of the loss, the loss on all validation text, seconds of train.py)."""
    folder = scratch / "nanogpt"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "out-*"))
    shutil.copy(text, folder / "data" / "shakespeare_char" / "input.txt")
    run([sys.executable, "-c", PREPARE], threads, folder)
    printed, seconds = run([sys.executable, "train.py", *FLAGS.split()], threads, folder)
    scored, _ = run([sys.executable, "-c", SCORE], threads, folder)
    return float(re.findall(r"val loss ([\d.]+)", printed)[-1]), float(scored.split()[-1]), seconds


def ours(text: Path, threads: int, scratch: Path) -> tuple[float, Seconds]:
    """(nats per character on all validation text, seconds of `nutshell speedrun`)."""
    content = text.read_text(encoding="ascii")  # a byte is a character, so bits per byte are bits per character
    cut = int(len(content) * 0.9)
    (scratch / "data").mkdir()
    for split, part in (("train", content[:cut]), ("val", content[cut:])):  # as `nutshell data download` has it
        pyarrow.parquet.write_table(pyarrow.table({"text": [part]}), scratch / "data" / f"{split}-00000.parquet")
    out = scratch / "run"
    flags = ["--data", str(scratch / "data"), "--out", str(out), "--threads", str(threads), "--device", "cpu"]
    _, seconds = run([sys.executable, "-m", "nutshell", "speedrun", str(RECIPE), *flags], threads)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report["stages"]["pretrain"]["val_bpb"] * math.log(2), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        estimate, theirs, their_time = nanogpt(options.nanogpt, options.text, options.threads, Path(scratch))
        print(f"nanoGPT   {theirs:.4f} nats per character ({estimate:.4f} by its own estimate), {spell(their_time)}", flush=True)
        loss, our_time = ours(options.text, options.threads, Path(scratch))
    print(f"nutshell  {loss:.4f} nats per character, {spell(our_time)}")
    clock, cpu = (mine / other for mine, other in zip(our_time, their_time, strict=True))
    print(f"ratio     {loss / theirs:.3f} of the loss in {clock:.2f} of the clock's and {cpu:.2f} of the processor's time")
    print(f"{options.threads} thread(s), {processor()}")


def spell(seconds: Seconds) -> str:
    return f"{seconds[0]:.0f} s ({seconds[1]:.0f} s of the processor)"


if __name__ == "__main__":
    main()
