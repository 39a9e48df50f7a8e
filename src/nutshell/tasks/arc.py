"""ARC, the AI2 reasoning challenge: multiple-choice science questions for schools (Clark et al. 2018, arXiv 1803.05457)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.tasks.task import (
    Item,
    Task,
    after_examples,
    chosen_letter,
    enough,
    guessing,
    lettered_item,
    needed_folder,
    read_items,
    subsample,
)

SUBSETS = {"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}
NEEDS = (
    "JSON lines with question, choices (text, label) and answerKey, one file a split as ARC-Easy-test.jsonl; "
    "`nutshell data download arc` fetches them"
)


def load(name: str, limit: int | None, seed: int, data_folder: str | Path | None, shots: int, split: str) -> Task:
    """A split of ARC-Easy or ARC-Challenge from DATA_FOLDER/arc/; `shots` solved questions of train come first."""
    subset = SUBSETS[name]
    folder = needed_folder(name, data_folder, f"arc/{subset}-{split}.jsonl") / "arc"
    items = subsample(read_items(folder / f"{subset}-{split}.jsonl", NEEDS, _item), limit, seed)
    baseline = guessing(items)
    notes: tuple[str, ...] = ()
    if shots:
        train = read_items(folder / f"{subset}-train.jsonl", NEEDS, _item)
        examples, notes = enough(subsample(train, shots, seed), shots, "the train split")
        items = after_examples(items, examples)
    return Task(name=name, items=items, baseline=baseline, grade=chosen_letter, notes=notes)


def _item(place: str, row: dict[str, Any], index: int) -> Item:
    try:
        question, key = row["question"], str(row["answerKey"])
        texts, labels = row["choices"]["text"], [str(label) for label in row["choices"]["label"]]
        right = labels.index(key)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{place}: accepted: {NEEDS}, with answerKey among the labels.") from None
    if not isinstance(question, str) or len(texts) != len(labels) or len(texts) < 2:
        raise ValueError(f"{place}: accepted: {NEEDS}, with 2 choices or more.")
    return lettered_item(question, texts, right, labels, index)
