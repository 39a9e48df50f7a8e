"""GSM8K: word problems of primary school (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nutshell.tasks.task import (
    Item,
    Task,
    after_examples,
    enough,
    last_number,
    needed_folder,
    plain_number,
    read_items,
    subsample,
)

NEEDS = (
    "JSON lines with question and answer, the answer ending in #### and the result, one file a split as test.jsonl; "
    "`nutshell data download gsm8k` fetches them"
)
MAX_TOKENS = 512
_FINAL = re.compile(r"####\s*(-?[\d,]*\.?\d+)")
_CALCULATION = re.compile(r"<<([^<>]*)>>")


def load(limit: int | None, seed: int, data_folder: str | Path | None, shots: int, split: str) -> Task:
    """A split of DATA_FOLDER/gsm8k/; `shots` solved problems of train come first, with their calls of the calculator."""
    folder = needed_folder("gsm8k", data_folder, f"gsm8k/{split}.jsonl") / "gsm8k"
    items = subsample(read_items(folder / f"{split}.jsonl", NEEDS, _item), limit, seed)
    notes: tuple[str, ...] = ()
    if shots:
        train = read_items(folder / "train.jsonl", NEEDS, _item)
        examples, notes = enough(subsample(train, shots, seed), shots, "the train split")
        items = after_examples(items, examples)
    return Task(name="gsm8k", items=items, grade=grade, max_tokens=MAX_TOKENS, notes=notes)


def _item(place: str, row: dict[str, Any], index: int) -> Item:
    question, answer = row.get("question"), row.get("answer")
    final = _FINAL.search(answer) if isinstance(answer, str) else None
    if not isinstance(question, str) or not isinstance(answer, str) or final is None:
        raise ValueError(f"{place}: accepted: {NEEDS}.")
    asked = [{"role": "user", "content": question}]
    return Item(messages=asked, answer=plain_number(final.group(1)), solution=with_calculator(answer), index=index)


def with_calculator(answer: str) -> list[dict[str, str]]:
    """The parts of a solution: each mark <<48/2=24>> is a call of the calculator and what it gave."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(_CALCULATION.split(answer)):
        if number % 2:
            expression, _, result = text.rpartition("=")
            parts += [{"type": "python", "text": expression or result}, {"type": "python_output", "text": result}]
        elif text:
            parts.append({"type": "text", "text": text})
    return parts


def grade(item: Item, text: str) -> float:
    """The number after the first ####, or the last number of a reply without ####, is the result."""
    marked = _FINAL.search(text)
    return float((plain_number(marked.group(1)) if marked else last_number(text)) == item.answer)
