"""The one reader of rows: JSON lines, JSON, CSV, TSV and Parquet, compressed or not, each row with its place for messages."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nutshell.files import shown
from nutshell.text_files import encoding_of, json_rows, kind_of, text_blocks

TABLES = (".csv", ".tsv")
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".parquet", *TABLES)
Bad = Callable[[str, ValueError], object]
"""Is called with the place of a bad row and its error; reading goes on."""


def file_rows(file: Path, bad: Bad | None = None, encoding: str = "") -> Iterator[tuple[str, Any]]:
    """(place, row) for each row of a file of `ROW_KINDS`; `encoding` is for tables. Rows that cannot be parsed go to `bad`, or
    raise ValueError without it; a damaged file always does."""
    if kind_of(file) == ".parquet":
        return _parquet_rows(file)
    return csv_rows(file, bad, encoding) if kind_of(file) in TABLES else json_rows(file, bad)


def csv_rows(path: Path, bad: Bad | None = None, encoding: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a table as {column: cell}; the first line names the columns. The separator of a .tsv is the tab, of a .csv
    whichever of , ; and tab the first line has most of. Without `encoding`, see `encoding_of`. A row with more or fewer cells
    than columns, or with an unclosed quotation mark, raises ValueError or goes to `bad`."""
    csv.field_size_limit(1 << 30)  # the default refuses cells of more than 131,072 characters
    quotes = 0

    def counted(lines: Iterator[str]) -> Iterator[str]:
        nonlocal quotes
        for line in lines:
            quotes += line.count('"')
            yield line

    lines = counted(lines_of(text_blocks(path, encoding or encoding_of(path))))
    head = next(lines, "")
    delimiter = "\t" if kind_of(path) == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(itertools.chain([head], lines), delimiter=delimiter)
    columns = next(reader, [])
    begins, quotes, name = reader.line_num + 1, 0, shown(path)
    for cells in reader:
        place, wrong = f"{name}, line {reader.line_num}", ""
        if begins < reader.line_num and quotes % 2:
            place, wrong = f"{name}, line {begins}", f"a quotation mark is not closed until line {reader.line_num}"
        elif cells and len(cells) != len(columns):
            wrong = f"{len(cells)} cells where the head has {len(columns)} columns"
        begins, quotes = reader.line_num + 1, 0
        if wrong:
            error = ValueError(f"{place}: {wrong}")
            if bad is None:
                raise error
            bad(place, error)
        elif cells:
            yield place, dict(zip(columns, cells, strict=True))


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def kind_of_error(place: str, error: Exception) -> str:
    """The part of a message that errors of one kind share, for counting them: the first clause, without place and numbers, and of
    what is quoted only single words.

    >>> kind_of_error("a.jsonl, line 2", ValueError("a.jsonl, line 2: message 3 (user) is empty; write something"))
    'message N is empty'
    """
    text = re.sub(r" \(.*\)", "", str(error).removeprefix(f"{place}: "))
    clause = re.split(r"[;:]", re.sub(r"[{[].*", "...", text))[0]
    return re.sub(r"\d+", "N", re.sub(r"(?<!\w)(['\"])(?![a-z_]+\1).*?\1", "...", clause))[:80]


@contextmanager
def open_parquet(file: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file, read through a small buffer, as it may be one row group. ValueError with its name if it is damaged."""
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
    """A value without its null fields: objects in a Parquet column all have the same fields, null where one had none. Null
    content beside tool calls is dropped too, which means the same."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return {key: _without_nulls(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value
