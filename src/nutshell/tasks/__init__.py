"""Tests of a model: each task is data and a grader.

task = load_task("primer-sums", limit=100)
right = sum(task.grade(item, reply) for item, reply in zip(task.items, replies))
"""

from __future__ import annotations

import difflib
from pathlib import Path

from nutshell.tasks import arc, core, gsm8k, humaneval, mmlu, own, primer
from nutshell.tasks.core import Core
from nutshell.tasks.task import Item, Task

TASK_NAMES = (
    "primer-facts", "primer-sums", "primer-letters", "primer-vowels", "spelling", "arc-easy", "arc-challenge", "mmlu", "gsm8k",
    "humaneval", "core",
)  # fmt: skip
GROUPS = {
    "primer": ("primer-facts", "primer-sums", "primer-letters", "primer-vowels"),
    "arc": ("arc-easy", "arc-challenge"),
    "letters": ("primer-letters",),
    "chatcore": ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval"),
}
"""Names for several tasks."""
TAKE_SHOTS = (*GROUPS["arc"], "mmlu", "gsm8k")
"""Those that may put solved examples before a question."""
READ_DATA = (*TAKE_SHOTS, "humaneval", "core", "custom")
"""Those that read files of a data folder."""

__all__ = ["GROUPS", "READ_DATA", "TAKE_SHOTS", "TASK_NAMES", "Core", "Item", "Task", "load_task", "task_names"]


def task_names(words: list[str] | tuple[str, ...]) -> list[str]:
    """Names of tasks, each once, from words with commas between them and names of groups. ValueError for unknown ones."""
    parts = [part.strip() for word in words for part in word.split(",")]
    names = [name for part in parts if part for name in GROUPS.get(part, (part,))]
    for name in names:
        if name not in TASK_NAMES and not own.is_own(name):
            known = [*TASK_NAMES, *GROUPS]
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"unknown task {name!r}.{f' Did you mean {close[0]}?' if close else ''} Accepted: {', '.join(known)}, "
                "a function in a file as my_task.py:task, or a .jsonl file."
            )
    return list(dict.fromkeys(names))


def load_task(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 42,
    data_folder: str | Path | None = None,
    shots: int = 0,
    split: str = "test",
) -> Task | Core:
    """The task of that name with at most `limit` items, the same ones for the same seed.

    The primer's tasks and spelling need nothing; arc-easy, arc-challenge, mmlu, gsm8k, humaneval and core read folders of
    `data_folder`.
    The first four may put solved examples, `shots`, before each question, and have other splits, such as train. Any other name is
    a task of your own (own.py); `custom` is the one in the file `data_folder`.

    Raises ValueError for an unknown name, a limit below 1, missing arguments and malformed rows, FileNotFoundError for missing
    files.
    """
    if shots < 0:
        raise ValueError(f"shots is {shots}; accepted: 0 or more solved examples.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; accepted: 1 or more, or none for all items.")
    if name == "custom":
        if data_folder is None:
            raise ValueError(f"the task custom reads a file: give it as data, {own.NEEDS}.")
        return own.load(str(data_folder), limit, seed)
    if len(names := task_names([name])) > 1:
        raise ValueError(f"{name} is a name for several tasks; give {', '.join(names)}.")
    if own.is_own(name):
        return own.load(name, limit, seed)
    if name in arc.SUBSETS:
        return arc.load(name, limit, seed, data_folder, shots, split)
    if name == "mmlu":
        return mmlu.load(limit, seed, data_folder, shots, split)
    if name == "gsm8k":
        return gsm8k.load(limit, seed, data_folder, shots, split)
    if name == "humaneval":
        return humaneval.load(limit, seed, data_folder)
    if name == "core":
        return core.load(data_folder, limit)
    return primer.load(name.removeprefix("primer-"), limit, seed)
