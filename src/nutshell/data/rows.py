"""The one reader of rows: JSON lines, JSON, CSV, TSV and Parquet, packed or not, each row with its place for messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nutshell.files import csv_rows, json_rows, kind_of, shown

TABLES = (".csv", ".tsv")
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".parquet", *TABLES)
Bad = Callable[[str, ValueError], object]
"""Hears the place of a bad row and what is wrong with it, and reading goes on."""


def file_rows(file: Path, bad: Bad | None = None, encoding: str = "") -> Iterator[tuple[str, Any]]:
    """(place, row) of a file of `ROW_KINDS`; the encoding is that of tables. Rows that cannot be parsed go to `bad`; without it
    they raise ValueError, as does a file that is damaged."""
    if kind_of(file) == ".parquet":
        return _parquet_rows(file)
    return csv_rows(file, bad, encoding) if kind_of(file) in TABLES else json_rows(file, bad)


def kind_of_error(place: str, error: Exception) -> str:
    """What errors of one kind have in common: their first clause without place and numbers, of quotations only single words.

    >>> kind_of_error("a.jsonl, line 2", ValueError("a.jsonl, line 2: message 3 (user) is empty; write something"))
    'message N is empty'
    """
    text = re.sub(r" \(.*\)", "", str(error).removeprefix(f"{place}: "))
    clause = re.split(r"[;:]", re.sub(r"[{[].*", "...", text))[0]
    return re.sub(r"\d+", "N", re.sub(r"(?<!\w)(['\"])(?![a-z_]+\1).*?\1", "...", clause))[:80]


@contextmanager
def open_parquet(file: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file, read through a small buffer (it may be one row group). Damage raises ValueError with its name."""
    try:
        # As a Python file: Arrow itself opens no name that is not UTF-8.
        with file.open("rb") as content, pyarrow.parquet.ParquetFile(content, buffer_size=1 << 20) as parquet:
            yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shown(file)} cannot be read as Parquet ({error}): it is damaged or incomplete") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with open_parquet(file) as parquet:
        rows = (row for batch in parquet.iter_batches(batch_size=1024) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{shown(file)}, row {number}", {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """All objects of a Parquet column have the same fields; those that one did not have are null. An assistant's null content
    beside its tool calls goes too, which means the same."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return {key: _without_nulls(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value
