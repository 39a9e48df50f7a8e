"""The one reader of documents: text, Markdown, JSON lines, JSON and Parquet files, compressed or not, and folders of them.

Everything streams, so a file larger than memory is fine. Errors name the file and the line, byte or row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow

from nutshell.data.find import Files, Notes, find_files, names_of
from nutshell.data.rows import Bad, file_rows, open_parquet
from nutshell.files import json_kind, shown
from nutshell.text_files import kind_of, text_blocks

TEXT_KINDS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")
COLUMNS = ("text", "content", "raw_content", "body", "document", "article", "passage", "page_content", "story", "markdown")
"""Names of a column of text; the first that a file has is read, unless a column is named."""
SHORTEST_CUT, LONGEST_CUT = 16_384, 65_536
"""A text file is cut into documents, at blank lines if it has them. The limit in characters grows with the file: even the
shortest fills a context of 2,048 tokens, and a small file still becomes several documents, so that one can be held out."""

_BOUNDARIES = ("\n\n", "\n", ". ", "。", " ")


def read_documents(paths: Path | str | Iterable[Path | str]) -> Iterator[str]:
    """Documents to train on from files and folders (recursive, sorted by path, see `find_files`).

    A text file becomes many documents of 16,384 to 65,536 characters; a row of a .jsonl, .json or .parquet file is one.
    Documents of nothing but white space are left out. Missing paths and unknown suffixes raise ValueError or
    FileNotFoundError at once, broken content when the iteration reaches it, and an input without any document at its end.
    """
    return _documents(find_text(paths).train)


def _documents(files: list[Path]) -> Iterator[str]:
    empty = True
    for file in files:
        for document in read_file(file):
            empty = False
            yield document
    if empty:
        raise ValueError(f"no text in {names_of(files)}: every document is empty")


def find_text(paths: Path | str | Iterable[Path | str]) -> Files:
    """The files of text that `paths` name; see `find_files`."""
    return find_files(paths, TEXT_KINDS, lambda row: isinstance(row, dict) and find_column(row) is not None)


def read_file(
    file: Path, notes: Notes | None = None, column: str = "", bad: Bad | None = None, encoding: str = ""
) -> Iterator[str]:
    """The documents of one file that are not just white space; `column` names the column to read. A bad row goes to `bad`, or
    raises ValueError without it. So does a file that cannot be read."""
    kind = kind_of(file)
    if kind == ".parquet":
        documents: Iterator[str] = (text for part in text_columns(file, notes, column) for text in part.to_pylist())
    elif kind in (".txt", ".md"):
        limit = min(LONGEST_CUT, max(SHORTEST_CUT, file.stat().st_size // 128))
        documents = split_text(text_blocks(file), limit)
    else:
        documents = _row_documents(file_rows(file, bad, encoding), notes, column, bad)
    return (document for document in documents if document and not document.isspace())


def split_text(blocks: Iterable[str], limit: int = SHORTEST_CUT) -> Iterator[str]:
    """Cut running text into documents of at most `limit` characters: at the last blank line that fits, else at the last line
    end, sentence or space, else anywhere. Only line ends and spaces at a cut are lost.
    """
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > limit:
            cut = _cut(text, start, limit)
            yield text[start:cut].strip("\n ")
            start = cut
        text = text[start:]
    yield text.strip("\n ")


def _cut(text: str, start: int, limit: int) -> int:
    for boundary in _BOUNDARIES:
        # A boundary in the first quarter would leave crumbs; a weaker one further on is better.
        found = text.rfind(boundary, start + limit // 4, start + limit)
        if found >= 0:
            return found + len(boundary)
    return start + limit


def find_column(names: Iterable[str]) -> str | None:
    """The column of text among `names`: the first of `COLUMNS` that is there, in upper or lower case."""
    known = {name.lower(): name for name in names}
    return next((known[name] for name in COLUMNS if name in known), None)


def _column_of(where: str, names: list[str], notes: Notes | None = None, column: str = "") -> str:
    there = ", ".join(map(str, names[:20])) or "none"
    if column and column not in names:
        raise ValueError(f"{where}: no column {column!r}; found {there:.300}")
    found = column or find_column(names)
    if found is None:
        hint = "; these look like conversations, which are read for fine-tuning"
        hint = hint if {"messages", "conversations"} & {*names} else f"; accepted are {', '.join(COLUMNS)}"
        raise ValueError(f"{where}: no column 'text'; found {there:.300}{hint}")
    if found != "text" and notes is not None:
        notes["column"][found] += 1
    return found


def _row_documents(rows: Iterable[tuple[str, Any]], notes: Notes | None, asked: str, bad: Bad | None) -> Iterator[str]:
    """The text of (place, row) pairs."""
    column = asked or "text"
    for where, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(f"{where}: {json_kind(row)} where an object with the column {column!r} is expected")
            if column not in row:
                column = _column_of(where, list(row), notes, asked)
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{where}: column {column!r} holds {json_kind(text)}, not a string")
        except ValueError as error:
            if bad is None:
                raise
            bad(where, error)
        else:
            yield text or ""


def text_columns(file: Path, notes: Notes | None = None, column: str = "") -> Iterator[pyarrow.LargeStringArray]:
    """The text of a Parquet file, some rows at a time, "" for null. The column may hold strings, UTF-8 bytes or a dictionary."""
    with open_parquet(file) as parquet:
        name = text_column(file, parquet.schema_arrow, notes, column)
        row = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=[name]):
            yield as_text(batch.column(0), f"{shown(file)}, row", row)
            row += len(batch)


def text_column(file: Path, schema: pyarrow.Schema, notes: Notes | None = None, asked: str = "") -> str:
    """The name of the column of text in a Parquet file. ValueError if there is none, or if it holds something else."""
    column = _column_of(shown(file), schema.names, notes, asked)
    if schema.names.count(column) > 1:
        raise ValueError(f"{shown(file)} has several columns {column!r}; one is needed")
    kind = schema.field(column).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if str(value) not in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view"):
        raise ValueError(f"{shown(file)}: column {column!r} is of type {kind}; a column of strings is needed")
    return column


def as_text(array: pyarrow.Array, where: str, before: int) -> pyarrow.LargeStringArray:
    """A column as checked UTF-8 strings. ValueError names the row that is not UTF-8; `before` rows came earlier in the file."""
    if isinstance(array, pyarrow.DictionaryArray):
        array = array.dictionary_decode()
    if str(array.type) in ("string_view", "binary_view"):
        array = array.cast(pyarrow.large_string() if str(array.type) == "string_view" else pyarrow.large_binary())
    array = array.cast(pyarrow.large_binary())  # from there, and only from there, the cast to strings checks them
    try:
        return array.cast(pyarrow.large_string()).fill_null("")
    except pyarrow.ArrowInvalid:
        for number, value in enumerate(array.to_pylist(), before + 1):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} {number} is not UTF-8: byte 0x{value[error.start]:02x} at {error.start}") from None
        raise
