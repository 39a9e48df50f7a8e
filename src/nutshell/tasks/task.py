"""What a task is: items with a right answer, and a function that grades a reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nutshell.files import json_kind
from nutshell.text_files import json_rows

Message = dict[str, Any]
T = TypeVar("T")

LETTERS = "ABCDEFGHIJ"
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    messages: list[Message]
    """The conversation; the last message is the user's."""
    answer: str = ""
    """The right reply or final number; with options, one of them."""
    options: tuple[str, ...] = ()
    """Multiple choice: the replies to choose from. Empty where the model writes freely."""
    solution: Any = None
    """What an assistant that knows says, as text or parts (tokenizer/chat.py); None where that is the answer itself."""
    index: int = 0
    """Its place in its file, from 0."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else a grader needs; of a row of a file, all its fields."""

    def __getitem__(self, name: str) -> Any:
        """A field of the row that it was read from. KeyError names those there are."""
        if name not in self.details:
            raise KeyError(f"the item has no {name!r}; it has {', '.join(self.details) or 'no fields'}")
        return self.details[name]

    @property
    def conversation(self) -> list[Message]:
        """The item with its solution, to learn from."""
        return [*self.messages, {"role": "assistant", "content": self.answer if self.solution is None else self.solution}]


def same_text(item: Item, text: str) -> float:
    """The reply is the answer, apart from surrounding space."""
    return float(text.strip() == item.answer.strip())


@dataclass(frozen=True, kw_only=True)
class Task:
    """Items of one kind with their grader.

    Items with options are scored by the log-probability of each as the assistant's reply, others by what the model writes.
    """

    items: list[Item]
    grade: Callable[[Item, str], float] = same_text
    """How right a written reply is, 0 to 1."""
    name: str = "task"
    baseline: float = 0.0
    """Accuracy of random guessing, 0 to 1."""
    max_tokens: int = 128
    """Of a written reply."""
    notes: tuple[str, ...] = ()
    """What the reader of a result should know."""

    @property
    def kind(self) -> str:
        """Either `choice` or `generate`."""
        return "choice" if self.items and self.items[0].options else "generate"


def chosen_letter(item: Item, text: str) -> float:
    """The reply begins with the right letter, as in "B", "B)" or "B) Paris"."""
    match = re.match(r"\s*\(?([A-Z0-9])(?![A-Za-z0-9])", text)
    return float(match is not None and match.group(1) == item.answer)


def last_number(text: str) -> str | None:
    """The last number in the text without its thousands separators, or None. Digits glued to a letter do not count.

    Example: last_number("b0 a1 n1. It is 1,200.") -> "1200"
    """
    found = _NUMBER.findall(text)
    return plain_number(found[-1]) if found else None


def plain_number(text: str) -> str:
    """ "1,200.0" -> "1200": no separators, no empty fraction."""
    number = text.replace(",", "").strip()
    return number.rstrip("0").rstrip(".") if "." in number else number


def lettered_item(question: str, choices: Sequence[str], right: int, letters: Sequence[str] = LETTERS, index: int = 0) -> Item:
    """A question that is answered by a letter.

    The layout is nanochat's (tasks/common.py): small models bind a letter better when it follows its choice, and without a
    space before it, as in the reply, it is the same token.
    """
    listed = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=False))
    text = f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."
    options = tuple(letters[: len(choices)])
    return Item(messages=[{"role": "user", "content": text}], answer=options[right], options=options, index=index)


def after_examples(items: list[Item], examples: list[Item]) -> list[Item]:
    """The items, each behind the solved examples, which are earlier turns of its conversation."""
    turns = [message for example in examples for message in example.conversation]
    return [replace(item, messages=[*turns, *item.messages]) for item in items]


def guessing(items: Iterable[Item]) -> float:
    """Expected accuracy of picking an option at random; 0 for items without options."""
    chances = [1 / len(item.options) if item.options else 0.0 for item in items]
    return sum(chances) / len(chances) if chances else 0.0


def subsample(values: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of the values in their order, the same ones for the same seed; all of them if there are no more.

    They are the first of numpy's permutation by that seed; seed 42 takes the items that nanochat's chat evaluation takes."""
    if limit is None or limit >= len(values):
        return list(values)
    return [values[index] for index in sorted(np.random.default_rng(seed).permutation(len(values))[:limit])]


def read_rows(path: Path, needs: str) -> list[tuple[str, dict[str, Any]]]:
    """(place for messages, object) of a file of JSON lines; `needs` says what the file must hold and where it is from.

    Raises FileNotFoundError if there is no such file, ValueError for a line that is no JSON object and for no lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it should hold {needs}.")
    rows = list(json_rows(path))
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: {json_kind(row)}; accepted: {needs}.")
    if not rows:
        raise ValueError(f"{path} is empty; accepted: {needs}.")
    return rows


def read_items(path: Path, needs: str, to_item: Callable[[str, dict[str, Any], int], Item]) -> list[Item]:
    """Each row of such a file as an item; `to_item` gets its place for messages, the row and its index."""
    return [to_item(place, row, index) for index, (place, row) in enumerate(read_rows(path, needs))]


def needed_folder(name: str, data_folder: str | Path | None, layout: str) -> Path:
    """The data folder of a task that reads files. ValueError if none was given, FileNotFoundError if it is missing."""
    if data_folder is None:
        raise ValueError(f"{name} reads files: give --eval-data FOLDER (in a recipe, eval_data), a folder with {layout}.")
    folder = Path(data_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; {name} reads a folder with {layout}.")
    return folder


def enough(examples: Sequence[T], wanted: int, source: str) -> tuple[list[T], tuple[str, ...]]:
    """The first `wanted` examples, and a note where there are fewer."""
    few = len(examples) < wanted
    return list(examples[:wanted]), (f"{len(examples)} examples instead of {wanted}: {source} has no more",) * few
