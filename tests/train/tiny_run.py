"""A run so small that a whole stage takes a fraction of a second, and what must be equal when it is interrupted."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.metrics import read_metrics
from nutshell.plan.recipe import Recipe
from nutshell.runtime import Runtime
from nutshell.train.stage import Stage

STEPS = {"pretrain": 7, "midtrain": 5, "sft": 5, "rl": 5}
CLOCKS = {"seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "rollout_seconds", "eval_seconds", "stage_seconds"}
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=torch.get_num_threads())

EVERY_STEP = {"save_every_seconds": 1e-9}


def recipe(out: Path, **changes) -> Recipe:
    base = Recipe(
        out=str(out), depth=1, width=64, context=128, vocab_size=512, tokens_per_step=512, micro_batch_size=2,
        primer_characters=60_000, eval_items=2, save_every_seconds=1e9,
    )  # fmt: skip
    stages = replace(base.stages, **{name: replace(getattr(base.stages, name), steps=n) for name, n in STEPS.items()})
    stages = replace(stages, rl=replace(stages.rl, prompts=2, samples=4, max_tokens=8))
    return replace(base, stages=stages, **changes)


def weights(folder: Path) -> dict[str, bytes]:
    """Everything of a checkpoint that training computed: weights, optimizer, and where the data stands."""
    state = json.loads((folder / "training" / "state.json").read_text())
    state.pop("seconds")
    found = {name: (folder / name).read_bytes() for name in ("model.safetensors", "training/state.safetensors")}
    return {**found, "state.json": json.dumps(state, sort_keys=True).encode()}


def lines(folder: Path, stage: str | None = None) -> list[dict]:
    """The metrics without what a clock says."""
    return [
        {key: value for key, value in line.items() if key not in CLOCKS}
        for line in read_metrics(folder)
        if stage in (None, line["stage"])
    ]


def kept(folder: Path, stage: str = "pretrain") -> list[tuple[int, bool]]:
    """(step, whether it can be resumed) of all checkpoints."""
    return [(step, checkpoint.has_training(path)) for step, path in checkpoint.checkpoints(folder / stage)]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[Stage], object]) -> None:
    """Call action(stage) when a stage has recorded that step."""
    record = Stage.record

    def recorded(self, result, sources, **more):
        record(self, result, sources, **more)
        if self.step == step:
            action(self)

    monkeypatch.setattr(Stage, "record", recorded)


@cache
def tokenizer_conversations(seed: int) -> list[dict]:
    """What every run's tokenizer is trained on beside its text, written once."""
    return list(primer.conversations(seed, 4000))


@contextmanager
def quick_evaluations() -> Iterator[None]:
    """Stages are evaluated in tests/end_to_end and tests/eval; here a score is enough."""
    known, write = tokenizer_conversations(Recipe().seed), primer.conversations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primer, "conversations", lambda *seed_and_count, **more: (
            iter(known) if seed_and_count == (Recipe().seed, 4000) and not more else write(*seed_and_count, **more)
        ))  # fmt: skip
        patch.setattr("nutshell.train.scoring.evaluate", lambda task, model, tok, progress: score(task, model))
        # An untrained model never earns a reward, and RL without one has no gradient.
        patch.setattr(
            "nutshell.tasks.practice.GRADERS", dict.fromkeys(("sums", "letters", "vowels"), lambda item, text: len(text) % 2)
        )
        yield


def score(task, model) -> dict:
    """Not a real score, but one that tells any two models apart.

    By their matrices: in a model of one layer backout and the embedding's scale only scale what is normed next, so they follow
    the rounding of a gradient that is zero.
    """
    return result(float(sum(p.double().abs().mean() for p in model.parameters() if p.ndim > 1)))


def result(accuracy: float) -> dict:
    """As an evaluation gives it."""
    return {"accuracy": accuracy, "interval": (accuracy, accuracy), "examples": [], "notes": [], "records": []}
