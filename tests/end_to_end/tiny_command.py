"""Flags of a run that takes seconds, and what two runs must have alike."""

import json
import time
from pathlib import Path

from nutshell import checkpoint
from nutshell.metrics import read_metrics
from nutshell.tokenizer import Tokenizer

STEPS = {"pretrain": 6, "midtrain": 4, "sft": 4, "rl": 4}
TINY = (
    "--depth 1 --width 64 --context 128 --vocab-size 512 --primer-characters 60000 --tokens-per-step 512 --dtype float32 "
    "--eval-items 2 --stages.rl.prompts 2 --stages.rl.samples 2 --stages.rl.max-tokens 8 "
    + " ".join(f"--stages.{stage}.steps {steps}" for stage, steps in STEPS.items())
).split()
CLOCKS = {"seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "rollout_seconds", "eval_seconds", "stage_seconds"}


def losses_and_scores(folder: Path) -> list[dict]:
    """The metrics without what a clock says."""
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in read_metrics(folder)]


def final_weights(folder: Path) -> dict[str, bytes]:
    """Weights and optimizer state at the end of every stage that has one."""
    return {
        f"{stage}/{name}": (newest / name).read_bytes()
        for stage in checkpoint.STAGES
        if (newest := checkpoint.latest(folder / stage))
        for name in ("config.json", "model.safetensors", "training/state.safetensors", "tokenizer.json")
    }


def check_whole(folder: Path) -> int:
    """What lies in a run folder after any accident is whole; returns how many checkpoints there are."""
    found = [path for stage in checkpoint.STAGES for _, path in checkpoint.checkpoints(folder / stage)]
    for path in found:
        checkpoint.verify(path)
    read_metrics(folder)
    if (folder / "plan.json").exists():
        json.loads((folder / "plan.json").read_text())
    if (folder / "tokenizer" / "tokenizer.json").exists():
        Tokenizer.load(folder / "tokenizer")
    return len(found)


def wait_for(folder: Path, stage: str, timeout: float = 60) -> None:
    """Until the metrics have a line of this stage."""
    deadline = time.monotonic() + timeout
    while not any(line["stage"] == stage for line in read_metrics(folder)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no line of {stage} in {folder} after {timeout} s")
        time.sleep(0.005)
