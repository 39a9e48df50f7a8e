"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al. 2021, arXiv 2009.03300)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.tasks.task import (
    Item,
    Task,
    after_examples,
    chosen_letter,
    enough,
    lettered_item,
    needed_folder,
    read_items,
    subsample,
)

NEEDS = (
    "JSON lines with question, subject, choices (4) and answer (0 to 3), one file a split as test.jsonl; "
    "`nutshell data download mmlu` fetches them"
)


def load(limit: int | None, seed: int, data_folder: str | Path | None, shots: int, split: str) -> Task:
    """A split of DATA_FOLDER/mmlu/; `shots` (at most 5 are there) questions of the subject in dev come first, in their order."""
    folder = needed_folder("mmlu", data_folder, f"mmlu/{split}.jsonl") / "mmlu"
    items = subsample(read_items(folder / f"{split}.jsonl", NEEDS, _item), limit, seed)
    notes: tuple[str, ...] = ()
    if shots:
        of_subject: dict[str, list[Item]] = {}
        for item in read_items(folder / "dev.jsonl", NEEDS, _item):
            of_subject.setdefault(item.details["subject"], []).append(item)
        behind = []
        for item in items:
            examples, note = enough(of_subject.get(item.details["subject"], []), shots, "dev")
            behind += after_examples([item], examples)
            notes = note or notes
        items = behind
    return Task(name="mmlu", items=items, baseline=0.25, grade=chosen_letter, notes=notes)


def _item(place: str, row: dict[str, Any], index: int) -> Item:
    question, choices, right = row.get("question"), row.get("choices"), row.get("answer")
    fine = isinstance(question, str) and isinstance(choices, list) and len(choices) == 4 and right in (0, 1, 2, 3)
    if not fine:
        raise ValueError(f"{place}: accepted: {NEEDS}.")
    item = lettered_item(question, choices, right, "ABCD", index)  # type: ignore[arg-type]
    item.details["subject"] = str(row.get("subject", ""))
    return item
