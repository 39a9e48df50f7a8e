"""An open run: its folder, plan, tokenizer, log, checkpoints, and the signals that stop it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from nutshell import checkpoint
from nutshell.metrics import MetricsLog
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import Plan
from nutshell.run.checkpoints import Writer
from nutshell.runtime import Runtime
from nutshell.tokenizer import Tokenizer

CONVERSATIONS = "conversations.jsonl"


def copy_of(recipe: Recipe, key: str) -> Path:
    """The run's own copy of a part of its conversations, which `key` names (`MixturePart.key`)."""
    name = re.sub(r"[^\w.-]", "", Path(key).name)[:40]
    mixed = Path(recipe.out) / "mixture" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.jsonl"
    return Path(recipe.out) / CONVERSATIONS if key == recipe.sft else mixed


class Preempted(Exception):
    """SIGTERM or Ctrl-C: the state is saved, the same command goes on."""

    exit_code = 75


@dataclass
class Run:
    """Everything a stage needs, in one object that `open_run` makes."""

    folder: Path
    data: Path  # folder of train and val shards: the run's own, or the user's where --data names shards
    plan: Plan
    runtime: Runtime
    tok: Tokenizer
    log: MetricsLog
    stop: list[int] = field(default_factory=list)  # signals received; the next step boundary saves and leaves
    writer: Writer = field(default_factory=Writer)  # puts checkpoints on the disk while training goes on

    def stage_folder(self, stage: str) -> Path:
        return self.folder / stage

    @property
    def shards_weights(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return self.plan.recipe.shard == "weights" and self.runtime.world_size > 1

    def finished(self, stage: str) -> bool:
        """All steps of the stage are done and evaluated."""
        saved, steps = checkpoint.checkpoints(self.stage_folder(stage)), self.plan.stages[stage].steps
        return bool(saved) and saved[-1][0] == steps and self.log.has_evaluation(stage, steps)
