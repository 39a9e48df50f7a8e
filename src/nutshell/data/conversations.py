"""The one reader of conversations, for midtraining and fine-tuning: every format of formats.py, every container of rows.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nutshell.data.find import find_files, names_of
from nutshell.data.formats import FIRST_ROWS, accepted_columns, tell_format
from nutshell.data.rows import ROW_KINDS, file_rows, kind_of_error
from nutshell.files import json_kind

Example = dict[str, Any]
"""{"messages": [...]} or, of a bare text, {"text": "..."}."""


@dataclass(kw_only=True)
class Found:
    """The conversations of some files, and what was wrong with bad rows."""

    examples: list[Example] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)  # rows by format
    bad: Counter[str] = field(default_factory=Counter)  # rows by what is wrong with them
    unlearned: int = 0  # conversations without an answer to learn: no assistant speaks, or each answer has a weight of 0
    first_bad: str = ""  # place and error of the first

    def summary(self) -> str:
        """One line: rows by format, and how many were left out."""
        text = ", ".join(f"{count:,} rows of {name}" for name, count in self.formats.most_common())
        text += f"; {self.unlearned:,} without an answer to learn" if self.unlearned else ""
        return text + (f"; {self.bad.total():,} bad rows left out ({self.bad_by_kind()})" if self.bad else "")

    def bad_by_kind(self) -> str:
        kinds = [f"{count} × {kind.replace('message N', 'a message')}" for kind, count in self.bad.most_common(8)]
        return ", ".join(kinds) + (", and other kinds" if len(self.bad) > 8 else "")


def read_conversations(
    paths: Path | str | Iterable[Path | str], *, check: Callable[[Any], Any] | None = None, skip_bad: bool = False
) -> list[Example]:
    """The conversations of files or folders, see `find_conversations`. ValueError if a row is bad, unless `skip_bad`."""
    found = find_conversations(paths, check=check)
    refuse_bad(found, skip_bad)
    return found.examples


def refuse_bad(found: Found, skip_bad: bool) -> None:
    """ValueError if there are bad rows, with the first and their number. With `skip_bad` only if no row is good."""
    if found.bad and not (skip_bad and found.examples):
        rows, bad = found.bad.total() + len(found.examples), found.bad.total()
        mend = "Mend or delete them, or leave them out: --skip-bad." if found.examples else "None remains; mend them."
        raise ValueError(f"{found.first_bad}\n{bad} of {rows} rows are bad ({found.bad_by_kind()}). {mend}")


def find_conversations(paths: Path | str | Iterable[Path | str], *, check: Callable[[Any], Any] | None = None) -> Found:
    """Read the conversations of files or folders (see `find_files`), and count the bad rows; other columns are ignored.

    `check` gets each list of messages, raises ValueError if roles or their order are wrong, and may return tidied messages.
    ValueError for a file in none of the formats, a file that cannot be read, and if there is no row at all.
    """
    files = find_files(paths, ROW_KINDS, _is_conversation).train
    found = Found()
    for file in files:
        _read(file, found, check)
    if not found.examples and not found.bad:
        raise ValueError(f"no conversation in {names_of(files)}; accepted are rows with {accepted_columns()}")
    return found


def _is_conversation(row: Any) -> bool:
    """In a folder, rows of plain text beside conversations are for pretraining. If there is nothing else, they are taken."""
    form = tell_format([row])
    return form is not None and form.name != "text"


def _rows_and_errors(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) for each row of a file in order; for one that cannot be parsed (place, its ValueError)."""
    errors: list[tuple[str, ValueError]] = []
    for place, row in file_rows(file, lambda place, error: errors.append((place, error))):
        yield from errors
        errors.clear()
        yield place, row
    yield from errors


def _read(file: Path, found: Found, check: Callable[[Any], Any] | None) -> None:
    rows = _rows_and_errors(file)
    first = list(islice(rows, FIRST_ROWS))
    parsed = [(place, row) for place, row in first if not isinstance(row, ValueError)]
    form = tell_format(row for _, row in parsed)
    if form is None and parsed:
        place, row = parsed[0]
        columns = f"has the columns {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else f"is {json_kind(row)}"
        raise ValueError(f"{place}: the row {columns}; accepted are rows with {accepted_columns()}")
    for place, row in chain(first, rows):
        try:
            if isinstance(row, ValueError):
                raise row
            if form is None or not form.fits(row):
                raise ValueError(f"this row is not of the format of the first ones, {form and form.name}")
            content = form.read(row)
            if isinstance(content, str):
                found.examples.append({"text": content})
            else:
                messages = (check and check(content)) or content
                found.examples.append({"messages": messages})
                found.unlearned += not any(m.get("role") == "assistant" and m.get("weight") != 0 for m in messages)
            found.formats[form.name] += 1
        except ValueError as error:
            found.first_bad = found.first_bad or f"{place}: {str(error).removeprefix(f'{place}: ')}"
            found.bad[kind_of_error(place, error)] += 1
