"""Tasks as conversations to learn from: the items of their training parts with the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.tasks import Core, Task, load_task, own, task_names

SPLITS = {
    "gsm8k": ("train",), "arc-easy": ("train",), "arc-challenge": ("train",),
    "mmlu": ("auxiliary_train", "train", "validation"),  # the first that is there; tests ask from `test`, examples are of `dev`
}  # fmt: skip
"""Parts of each task that may be learned: none that is tested."""


def conversations_of(name: str, data_folder: str | Path | None) -> tuple[str, list[dict[str, Any]]]:
    """What a task that teaches reads, for messages, and its conversations: `{"messages": [...]}`.

    ValueError for a task without a part to learn from, FileNotFoundError where its file is missing. A task of your own teaches
    by all of its items: keep those that test apart.
    """
    (name,) = task_names([name])
    split = ""
    if own.is_own(name):
        task: Task | Core = own.load(name, None, 0)
    elif name not in SPLITS:
        accepted = f"{', '.join(SPLITS)}, spelling, the primer's, and tasks of your own"
        raise ValueError(f"the task {name} has nothing to learn from, only to be tested by. Accepted: {accepted}.")
    else:
        there = [split for split in SPLITS[name] if (Path(data_folder or "") / name / f"{split}.jsonl").is_file()]
        split = there[0] if there else SPLITS[name][0]
        task = load_task(name, data_folder=data_folder, split=split)
    assert isinstance(task, Task)
    return f"the task {name}" + f" ({split})" * bool(split), [{"messages": item.conversation} for item in task.items]
