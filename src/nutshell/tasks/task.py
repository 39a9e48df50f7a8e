"""What a task is: items with one right answer, and a function that judges a reply."""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Message = dict[str, Any]
T = TypeVar("T")

OPTION_LETTERS = "ABCDEFGHIJ"
LETTER_REQUEST = "Reply with the letter only."
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    messages: list[Message]
    """The conversation; the last message is the user's."""
    answer: str
    """The right reply or final number; with options, one of them."""
    options: tuple[str, ...] = ()
    """Multiple choice: the replies to choose from. Empty where the model writes freely."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Items of one kind with their grader.

    "choice" items are scored by the log-probability of each option as the assistant's reply, "generate" items by what
    the model writes.
    """

    name: str
    kind: Literal["choice", "generate"]
    items: list[Item]
    baseline: float
    """Accuracy of random guessing, 0 to 1."""
    grade: Callable[[Item, str], bool]
    """True if the text, an option or a written reply, is right for the item."""


def same_text(item: Item, text: str) -> bool:
    """The reply is the answer, apart from surrounding space."""
    return text.strip() == item.answer.strip()


def chosen_letter(item: Item, text: str) -> bool:
    """The reply begins with the right letter, as in "B", "B)" or "B) Paris"."""
    match = re.match(r"\s*\(?([A-Z])(?![A-Za-z])", text)
    return match is not None and match.group(1) == item.answer


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


def with_lettered_options(question: str, options: Sequence[str]) -> str:
    """The question, one option a line with its letter, and the request to reply with the letter."""
    listed = "\n".join(f"{OPTION_LETTERS[index]}) {option}" for index, option in enumerate(options))
    return f"{question}\n{listed}\n{LETTER_REQUEST}"


def guessing(items: Iterable[Item]) -> float:
    """Expected accuracy of picking an option at random; 0 for items without options."""
    chances = [1 / len(item.options) if item.options else 0.0 for item in items]
    return sum(chances) / len(chances) if chances else 0.0


def subsample(values: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of the values in their order, the same ones for the same seed; all of them if there are no more.

    Raises ValueError if limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more (or left out for all items), got {limit}")
    if limit is None or limit >= len(values):
        return list(values)
    chosen = random.Random(f"subsample {seed}").sample(range(len(values)), limit)
    return [values[index] for index in sorted(chosen)]


def read_rows(path: Path, needs: str) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file without its empty lines; `needs` says what the file must hold.

    Raises FileNotFoundError if there is no such file, ValueError for a line that is no JSON object and for no lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: this task needs {needs}")
    rows = []
    with path.open(encoding="utf-8-sig", errors="strict") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append((number, _object(path, number, line)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}); it must be {needs}") from None
    if not rows:
        raise ValueError(f"{path} is empty: it must be {needs}")
    return rows


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: a JSON object is needed, got {type(value).__name__}")
    return value


def needed_folder(name: str, data_folder: str | Path | None, layout: str) -> Path:
    """The data folder of a task that reads files. ValueError if none was given, FileNotFoundError if it is missing."""
    if data_folder is None:
        raise ValueError(f"task {name} reads local files: give data_folder, a folder with {layout}")
    folder = Path(data_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: task {name} needs a folder with {layout}")
    return folder
