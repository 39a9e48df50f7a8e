"""The checkpoints of a run: written by a thread while training goes on, pruned, and found again."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nutshell import checkpoint
from nutshell.files import write_json
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import Tokenizer

RESUMABLE = 2
"""How many of the newest checkpoints keep their training state: one to go on from, and one more in case that is damaged."""
BEST = "best.json"  # in a stage folder: which step scored best, and how


class Writer:
    """One thread that writes, one write at a time. Leaving the context waits for the pending write.

    An error of the thread is raised once, by the next `check`, `start` or `wait`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nutshell-save")
        self._pending: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def start(self, write: Callable[[], None]) -> None:
        """Begin a write, after the one before it."""
        self.wait()
        self._pending = self._pool.submit(write)

    def check(self) -> None:
        """Raise the error of a write that has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; raises the write's error."""
        if self._pending is not None:
            pending = self._pending
            pending.exception()  # an interrupted wait leaves it pending
            self._pending = None
            pending.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        if error[0] is None:  # else that error is the one to report
            self.wait()


def resumable(stage_folder: Path) -> list[Path]:
    """The complete checkpoints that a stage can go on from, oldest first."""
    return [path for _, path in checkpoint.checkpoints(stage_folder) if checkpoint.has_training(path)]


def best(stage_folder: Path) -> dict:
    """{"step": ..., "val_bpb": ...} of a stage's best checkpoint; empty where nothing was measured."""
    try:
        return json.loads((stage_folder / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def keep_best(stage_folder: Path, step: int, val_bpb: float) -> None:
    """Remember the checkpoint of `step` if it is the best so far."""
    if val_bpb < best(stage_folder).get("val_bpb", math.inf):
        write_json(stage_folder / BEST, {"step": step, "val_bpb": val_bpb})


def truncate_after(stage_folder: Path, step: int) -> None:
    """Forget the best checkpoint where it lies beyond `step`, to which the stage goes back."""
    if best(stage_folder).get("step", 0) > step:
        (stage_folder / BEST).unlink()


def prune(stage_folder: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints and the best one; delete the others, and what a killed process left half written.

    The newest two keep their training state, older ones their weights only.
    """
    found, ready = dict(checkpoint.checkpoints(stage_folder)), resumable(stage_folder)
    best_step = best(stage_folder).get("step")
    kept = {*list(found.values())[-keep:], *ready[-1:], *(path for step, path in found.items() if step == best_step)}
    for path in found.values():
        if path not in kept:
            os.replace(path, path.with_name(f".tmp-old-{path.name}-{os.getpid()}"))  # by rename, so that no half of it counts
    for path in stage_folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in kept - set(ready[-RESUMABLE:]):
        checkpoint.drop_training(path)


Opened = tuple[Decoder, Tokenizer, dict, dict[str, Tensor]]
"""Model, tokenizer, and the training state: JSON and tensors by name."""


def open_newest(
    stage_folder: Path, device: torch.device, *, go_back: bool, note: Callable[[str], None]
) -> tuple[Opened | None, list[Path]]:
    """The newest checkpoint to go on from (None: there is none), and the damaged ones passed over to reach it.

    Raises DamagedCheckpointError for a damaged one, unless `go_back` allows the one before it; ValueError where none is whole.
    """
    damaged: list[Path] = []
    for torn in checkpoint.incomplete(stage_folder):
        note(f"{torn} has no valid manifest.json and does not count.")
    ready = resumable(stage_folder)
    if not ready and (others := checkpoint.checkpoints(stage_folder)):
        raise ValueError(f"{others[-1][1]} holds weights only, no training state to go on from. Delete {stage_folder}.")
    for path in reversed(ready):
        try:
            model, tok, _ = checkpoint.load_model(path, device, training=True)
            return (model, tok, *checkpoint.load_training(path)), damaged
        except checkpoint.DamagedCheckpointError as error:
            if not go_back:
                raise checkpoint.DamagedCheckpointError(
                    f"{error} --damaged-checkpoint previous goes on from the one before it."
                ) from None
            note(f"{error} Going back, as --damaged-checkpoint previous asks.")
            damaged.append(path)
    if damaged:
        raise ValueError(f"no checkpoint in {stage_folder} is whole. Delete that folder to begin the stage anew.")
    return None, damaged


def quarantine(folders: list[Path]) -> None:
    """Rename damaged checkpoints, so that they no longer count and can still be looked at."""
    for path in folders:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
