"""ARC, the AI2 reasoning challenge: multiple-choice science questions for schools (Clark et al. 2018, arXiv 1803.05457)."""

from pathlib import Path
from typing import Any

from nutshell.tasks.task import (
    OPTION_LETTERS,
    Item,
    Message,
    Task,
    chosen_letter,
    guessing,
    needed_folder,
    read_rows,
    subsample,
    with_lettered_options,
)

SUBSETS = {"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}
NEEDS = "JSONL rows with question, choices (text, label) and answerKey"
MOST_EXAMPLES = 10


def load(name: str, limit: int | None, seed: int, data_folder: str | Path | None, examples: int = 0) -> Task:
    """The test split of ARC-Easy or ARC-Challenge from DATA_FOLDER/arc/; `examples` solved ones of train come first."""
    subset = SUBSETS[name]
    folder = needed_folder(name, data_folder, f"arc/{subset}-test.jsonl") / "arc"
    shots: list[Message] = []
    for item in subsample(_read(folder / f"{subset}-train.jsonl"), examples, seed) if examples > 0 else []:
        shots += [*item.messages, {"role": "assistant", "content": item.answer}]
    shots = shots[: 2 * MOST_EXAMPLES]
    items = [
        Item(messages=shots + item.messages, answer=item.answer, options=item.options)
        for item in subsample(_read(folder / f"{subset}-test.jsonl"), limit, seed)
    ]
    return Task(name=name, kind="choice", items=items, baseline=guessing(items), grade=chosen_letter)


def _read(path: Path) -> list[Item]:
    return [_item(path, number, row) for number, row in read_rows(path, NEEDS)]


def _item(path: Path, number: int, row: dict[str, Any]) -> Item:
    try:
        question, key = row["question"], str(row["answerKey"])
        texts, labels = row["choices"]["text"], [str(label) for label in row["choices"]["label"]]
        correct = labels.index(key)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}, line {number}: expected {NEEDS}, with answerKey among the labels") from None
    if not isinstance(question, str) or len(texts) != len(labels) or not 2 <= len(texts) <= len(OPTION_LETTERS):
        raise ValueError(f"{path}, line {number}: expected {NEEDS}, with 2 to {len(OPTION_LETTERS)} choices")
    content = with_lettered_options(question, texts)
    options = tuple(OPTION_LETTERS[: len(texts)])
    return Item(messages=[{"role": "user", "content": content}], answer=options[correct], options=options)
