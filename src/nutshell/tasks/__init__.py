"""Tests of a chat model: each task is data and a grader.

task = load_task("primer-sums", limit=100)
correct = sum(task.grade(item, reply) for item, reply in zip(task.items, replies))
"""

from pathlib import Path

from nutshell.tasks import arc, custom, gsm8k, primer
from nutshell.tasks.task import Item, Task

TASK_NAMES = ("primer-facts", "primer-sums", "primer-letters", "primer-vowels", "arc-easy", "arc-challenge", "gsm8k", "custom")

__all__ = ["TASK_NAMES", "Item", "Task", "load_task"]


def load_task(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    data_folder: str | Path | None = None,
    examples: int = 0,
) -> Task:
    """The task of that name with at most `limit` items, the same ones for the same seed.

    The primer tasks need nothing. arc-easy, arc-challenge and gsm8k read `data_folder`/arc and `data_folder`/gsm8k and
    may put up to some solved `examples` of the train split before each question. For custom, `data_folder` is a JSONL
    file or a folder with custom.jsonl.

    Raises ValueError for an unknown name, a limit below 1, missing arguments and malformed rows, FileNotFoundError for
    missing files.
    """
    if examples < 0:
        raise ValueError(f"examples must be 0 or more, got {examples}")
    if name in ("primer-facts", "primer-sums", "primer-letters", "primer-vowels"):
        return primer.load(name.removeprefix("primer-"), limit, seed)
    if name in arc.SUBSETS:
        return arc.load(name, limit, seed, data_folder, examples)
    if name == "gsm8k":
        return gsm8k.load(name, limit, seed, data_folder, examples)
    if name == "custom":
        return custom.load(limit, seed, data_folder)
    raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASK_NAMES)}")
