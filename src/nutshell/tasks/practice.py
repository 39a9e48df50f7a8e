"""What reinforcement learning practises: problems drawn by a seed, each with its grade, and some that are held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nutshell.data import primer
from nutshell.tasks import load_task, own, task_names
from nutshell.tasks.primer import GRADERS, TEST_SEED, to_item
from nutshell.tasks.reward import Grade, load_reward
from nutshell.tasks.task import Item, Task

WITH_TRAINING_ITEMS = ("primer-sums", "primer-letters", "primer-vowels", "gsm8k", "arc-easy", "arc-challenge", "mmlu")
TRAINING_SPLIT = {"mmlu": "auxiliary_train"}
Problem = tuple[str, Item, Grade]
"""The task's name, the question, and what grades a reply."""


@dataclass(frozen=True)
class Practice:
    """Problems of the primer's kinds, which are endless, and of items."""

    kinds: dict[str, float]
    """Weights of the primer's kinds."""
    items: list[Problem] = field(default_factory=list)
    held_out_items: list[Problem] = field(default_factory=list)
    reward: Grade | None = None
    """In place of the tasks' grades."""

    def draw(self, seed: int, count: int) -> list[Problem]:
        """`count` problems. The same ones for the same seed; a larger count only goes on."""
        rng = random.Random(f"practice {seed}")
        endless = primer.rl_problems(seed, count, self.kinds or None)
        share = len(self.kinds) / (len(self.kinds) + bool(self.items))
        left: list[Problem] = []
        drawn = []
        for _ in range(count):
            if self.items and rng.random() >= share:
                left = left or rng.sample(self.items, len(self.items))
                drawn.append(left.pop())
            else:
                drawn.append(self._graded(next(endless)))
        return drawn

    def held_out(self, count: int) -> list[Problem]:
        """At most `count` problems that are never drawn, the same ones at each call."""
        each = -(-count // max(1, len(self.kinds) + bool(self.held_out_items)))
        found = list(self.held_out_items[: each if self.kinds else count])
        for kind in self.kinds:
            found += map(self._graded, primer.held_out(kind, TEST_SEED + 1, each))
        return found[:count]

    def _graded(self, problem: primer.Problem) -> Problem:
        return f"primer-{problem.kind}", to_item(problem), self.reward or GRADERS[problem.kind]


def open_practice(
    names: Sequence[str], *, reward: str = "", data_folder: str | Path | None = None, held_out: int = 0, seed: int = 0
) -> Practice:
    """What the tasks of these names give to practise; without names the primer's sums, letters and vowels.

    `reward` names a function that grades in place of the tasks' own graders (reward.py); rows of a file then need no answer.
    At most a fifth of the items and `held_out` of them are kept apart. ValueError and FileNotFoundError say what is wrong.
    """
    grade = load_reward(reward) if reward else None
    kinds = dict(primer.RL_SHARES) if not names else {}
    problems: list[Problem] = []
    for name in task_names(list(names)):
        kind = name.removeprefix("primer-")
        if kind in primer.RL_SHARES:
            kinds[kind] = primer.RL_SHARES[kind]
            continue
        task = _load(name, data_folder, answered=grade is None)
        problems += [(Path(name).name, item, grade or task.grade) for item in task.items]
    random.Random(f"held out {seed}").shuffle(problems)
    kept = min(held_out, len(problems) // 5)
    return Practice(kinds, problems[kept:], problems[:kept], grade)


def _load(name: str, data_folder: str | Path | None, *, answered: bool) -> Task:
    if own.is_own(name):
        return own.load(name, None, 0, answered=answered)
    if name not in WITH_TRAINING_ITEMS:
        accepted = f"{', '.join(WITH_TRAINING_ITEMS)}, a function in a file as my_task.py:task, or a .jsonl file"
        raise ValueError(f"the task {name} has no items to train on, only its test. Accepted: {accepted}.")
    task = load_task(name, data_folder=data_folder, split=TRAINING_SPLIT.get(name, "train"))
    assert isinstance(task, Task)  # all but CORE are
    return task
