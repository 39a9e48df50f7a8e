"""The settings of each stage: how long, at which rates, on what data, and those of DPO and RL alone. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from nutshell.config import ABOVE_ZERO, check_ranges


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """One part of what a stage learns from: data or a task, with a weight or epochs."""

    data: str = ""
    """Files or a folder: text for pretraining, conversations for the others; or `primer`."""
    task: str = ""
    """A task that teaches, in midtraining and fine-tuning: gsm8k, mmlu, arc-easy, arc-challenge, spelling, my_task.py:task."""
    weight: float = 0.0
    """Its share of the stage's tokens, relative to those of the other parts (default 1)."""
    epochs: float = 0.0
    """Instead of a weight: how often the stage reads it."""
    rows: int = 0
    """Take only this many of its first rows; of the primer and spelling, write this many."""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.task):
            raise ValueError(f"a part of a mixture has data {self.data!r} and task {self.task!r}; accepted: one of the two.")
        if self.weight and self.epochs:
            raise ValueError(f"{self.key} has weight {self.weight:g} and epochs {self.epochs:g}; accepted: one of the two.")
        check_ranges(self, {"weight": (0, 10**9), "epochs": (0, 10**6), "rows": (0, math.inf)})

    @property
    def key(self) -> str:
        """Where it comes from."""
        return self.data or self.task

    @property
    def name(self) -> str:
        """For people: the file's name without its suffixes, or the task."""
        return re.sub(r"\.(jsonl?|ndjson|parquet|[ct]sv|txt|md|gz|zst|bz2)\b.*", "", re.split(r"[/\\]", self.key.rstrip("/"))[-1])


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One training stage."""

    share: float = 0.0
    """Share of the budget's training time this stage gets."""
    steps: int = 0
    """Optimizer steps; 0 lets the plan decide."""
    epochs: float = 3.0
    """Times that the conversations are read at most (midtrain and sft), or the pairs exactly (dpo); steps override it."""
    lr_fraction: float = 1.0
    """Peak learning rates as a share of pretraining's."""
    primer_share: float = 0.0
    """Share of primer conversations where --sft names a file (midtrain and sft)."""
    mixture: tuple[MixturePart, ...] = ()
    """Instead of --data or --sft, several parts: tables [[stages.NAME.mixture]] in a recipe's file."""

    def __post_init__(self) -> None:
        if len({bool(part.epochs) for part in self.mixture}) > 1:
            raise ValueError("a mixture has parts with epochs and parts with weights; accepted: the same for all of its parts.")
        if len({part.name for part in self.mixture}) < len(self.mixture):
            raise ValueError("two parts of a mixture have the same name; give each file once, and files of other names.")
        check_ranges(self, {"share": (0, 1), "steps": (0, 10**9), "epochs": (ABOVE_ZERO, 10**6), "lr_fraction": (0, 10**6)})
        check_ranges(self, {"primer_share": (0, 1)})

    @property
    def wanted(self) -> bool:
        """Whether the stage runs."""
        return bool(self.share or self.steps)


@dataclass(frozen=True, kw_only=True)
class DPOConfig(StageConfig):
    """Direct preference optimization, where there are pairs of answers."""

    pairs: str = ""
    """Preferences: a file or folder of rows with prompt, chosen and rejected. Empty leaves the stage out."""
    beta: float = 0.1
    """How strongly the model is held to the one before: a smaller beta goes farther."""
    batch: int = 16
    """Pairs a step."""
    held_out: float = 0.1
    """Share of the pairs, at most 256, that is only scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"beta": (ABOVE_ZERO, 10**6), "batch": (1, math.inf), "held_out": (0, 0.9)})
        if self.mixture:
            raise ValueError("dpo learns from pairs; a mixture is for pretrain, midtrain and sft.")
        if self.steps and not self.pairs:
            raise ValueError(f"steps is {self.steps}, but no pairs are named to learn from. Give pairs (--pairs FILE).")

    @property
    def wanted(self) -> bool:
        return bool(self.pairs)

    def held_out_of(self, pairs: int) -> int:
        """How many of `pairs` pairs are held out."""
        return min(256, int(self.held_out * pairs))

    def steps_for(self, pairs: int) -> int:
        """Steps that read `pairs` pairs `epochs` times, without those held out."""
        learned = pairs - self.held_out_of(pairs)
        return self.steps or (math.ceil(self.epochs * learned / min(self.batch, learned)) if learned else 0)


@dataclass(frozen=True, kw_only=True)
class RLConfig(StageConfig):
    """Reinforcement learning by GRPO (train/rl.py): on-policy, with rewards that can be checked."""

    tasks: tuple[str, ...] = ()
    """What is practised (--tasks, --prompts): gsm8k, arc-easy ..., a .jsonl file, a function as my_task.py:task (default: the
    primer's sums, letters and vowels)."""
    reward: str = ""
    """A function that grades (item, completion) instead of the tasks' graders, as rewards.py:grade (--reward)."""
    reward_seconds: float = 10.0
    """An answer whose grade takes longer is left out."""
    prompts: int = 16
    """Problems a step."""
    samples: int = 8
    """Answers drawn for each problem."""
    max_tokens: int = 96
    """Longest answer."""
    temperature: float = 1.0
    draws: int = 1
    """Dynamic sampling (arXiv 2503.14476): draw problems at most this often, until enough have answers of different reward."""
    updates: int = 1
    """Updates in one step, each on a part of its answers. Above 1 the probability ratio is clipped."""
    clip_low: float = 0.2
    """The ratio is clipped below 1 - clip_low,"""
    clip_high: float = 0.28
    """and above 1 + clip_high: more room upwards keeps rare tokens alive (clip-higher, arXiv 2503.14476)."""
    mean_over: Literal["tokens", "answers", "constant"] = "tokens"
    """What the loss is a mean over: all tokens of the step, the tokens of each answer and then the answers (GRPO's first form,
    which favours short right and long wrong answers), or answers of max_tokens each (no such bias; arXiv 2503.20783)."""
    kl: float = 0.0
    """Weight of the KL divergence to the model before RL, which is kept in memory where this is above 0."""
    validations: int = 3
    """How often pass@1 and pass@k are measured on held-out problems (before, during, after); 0 for never."""
    held_out: int = 32
    """Problems held out for that, which are never practised; of the items of a file at most a fifth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture:
            raise ValueError("rl writes its own problems; a mixture is for pretrain, midtrain and sft.")
        lowest = {"prompts": 1, "samples": 2, "max_tokens": 1, "draws": 1, "updates": 1, "validations": 0, "held_out": 0}
        lowest |= {"clip_high": 0, "kl": 0}
        check_ranges(self, {name: (low, math.inf) for name, low in lowest.items()} | {"clip_low": (0, 1)})
        check_ranges(self, {"temperature": (ABOVE_ZERO, 10**6), "reward_seconds": (ABOVE_ZERO, 10**6)})
        if self.updates > (answers := self.prompts * self.samples):
            raise ValueError(
                f"updates is {self.updates}; accepted: at most {answers}, the answers of a step (prompts x samples)."
            )
        if self.mean_over not in ("tokens", "answers", "constant"):
            raise ValueError(f"mean_over is {self.mean_over!r}; accepted: tokens, answers, constant.")

    @property
    def on_primer(self) -> bool:
        """Whether problems of the primer are practised."""
        return not self.tasks or any(name.startswith("primer") for name in self.tasks)


@dataclass(frozen=True, kw_only=True)
class Stages:
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.45))
    midtrain: StageConfig = field(default_factory=lambda: StageConfig(share=0.25, lr_fraction=0.7, primer_share=0.5))
    sft: StageConfig = field(default_factory=lambda: StageConfig(share=0.20, lr_fraction=0.5, primer_share=0.2))
    dpo: DPOConfig = field(default_factory=lambda: DPOConfig(lr_fraction=0.1))
    rl: RLConfig = field(default_factory=lambda: RLConfig(share=0.10, lr_fraction=0.1))
