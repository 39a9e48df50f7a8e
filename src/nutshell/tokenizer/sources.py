"""Texts on their way in: checked one by one, read from files, fed to the counter that training starts with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

    from nutshell.tokenizer._bpe import Counter

BATCH_CHARACTERS = 1 << 24
"""Text held at a time, so that memory does not grow with the source."""

SUFFIXES = (".txt", ".jsonl", ".parquet")


def check_text(text: object, what: str = "the text") -> str:
    """`text` if it can be encoded, else a ValueError that says why not and where."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r:.80} ({type(text).__name__}); it must be a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which no UTF-8 "
            "text can hold; remove it, or read the source with errors='replace'"
        ) from None
    return text


def feed(
    counter: Counter,
    source: Iterable[str | os.PathLike[str]] | os.PathLike[str],
    progress: Callable[[str, int], object] | None = None,
) -> None:
    """Count the pieces of every text and file of `source`."""
    if isinstance(source, str):
        raise ValueError("expected texts or paths, got one str; give [text] for a text and pathlib.Path(...) for a file")
    if isinstance(source, os.PathLike):
        source = [source]
    done = 0
    batch: list[str] = []
    held = 0

    def counted(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress("read", done)

    def flush() -> None:
        nonlocal held
        _count(counter, batch)
        counted(held)
        held = 0
        batch.clear()

    for item in _texts(source):
        if isinstance(item, str):
            batch.append(item)
            held += len(item)
            if held >= BATCH_CHARACTERS:
                flush()
            continue
        flush()
        if item.suffix == ".parquet":
            for size in _count_parquet(counter, item):
                counted(size)
        else:
            base = done
            counter.add_file(item, progress and (lambda read, base=base: progress("read", base + read)))
            done += item.stat().st_size
    flush()


def _count(counter: Counter, batch: list[str]) -> None:
    try:
        counter.add(batch)
    except (UnicodeEncodeError, TypeError):
        for text in batch:
            check_text(text, "a text to train on")
        raise


def _texts(source: Iterable[str | os.PathLike[str]]) -> Iterator[str | Path]:
    """Texts, and the paths of files that the counter takes without a `str` for each text."""
    for item in source:
        if isinstance(item, str):
            yield item
        elif isinstance(item, os.PathLike):
            yield from _file(Path(item))
        else:
            raise ValueError(f"{item!r:.80} ({type(item).__name__}) is neither a text (str) nor a file (pathlib.Path)")


def _file(path: Path) -> Iterator[str | Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"{path} holds no file to train on; accepted are {', '.join(SUFFIXES)}")
        for file in files:
            yield from _file(file)
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a {', '.join(SUFFIXES)} file or a folder of them")
    elif path.suffix in (".txt", ".parquet"):
        yield path
    elif path.suffix == ".jsonl":
        yield from _jsonl(path)
    else:
        raise ValueError(f"{path} is of an unknown kind {path.suffix!r}; accepted are {', '.join(SUFFIXES)}")


def _jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error})") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise ValueError(f'{path}, line {number}: expected an object with a string "text", got {record!r:.80}')
            yield record["text"]


def texts_of(source: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Every text of `source`, files read and `.txt` files whole."""
    for item in _texts(source):
        if isinstance(item, str):
            yield item
        elif item.suffix == ".parquet":
            for column in _columns(item):
                yield from (text for text in column.to_pylist() if text is not None)
        else:
            yield item.read_text(encoding="utf-8")


def _columns(path: Path) -> Iterator[pyarrow.Array]:
    """The column `text` of a Parquet file, some rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} can't be read as Parquet: {error}") from None
    with file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column 'text'; it has {', '.join(file.schema_arrow.names)}")
        kind = file.schema_arrow.field("text").type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise ValueError(f"the column 'text' of {path} holds {kind}; it must hold strings")
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            yield batch.column(0)


def _count_parquet(counter: Counter, path: Path) -> Iterator[int]:
    """Count a Parquet file from Arrow's buffers, reading ahead meanwhile. Yields the bytes counted each time."""
    row = 0
    with ThreadPoolExecutor(1) as reader:
        columns = _columns(path)
        ahead = reader.submit(next, columns, None)
        while (column := ahead.result()) is not None:
            ahead = reader.submit(next, columns, None)
            data, offsets = _buffers(column)
            counter.add_column(str(path), row, data, offsets)
            row += len(column)
            yield len(data)


def _buffers(column: pyarrow.Array) -> tuple[bytes, bytes]:
    """The bytes of a column of strings, and where each starts and the last one ends; null is an empty string."""
    import pyarrow

    column = column.cast(pyarrow.large_string()).fill_null("")
    if len(column) == 0:
        return b"", b""
    _, offsets, data = column.buffers()
    offsets = offsets.slice(column.offset * 8, (len(column) + 1) * 8).to_pybytes()
    start, end = (int.from_bytes(offsets[at : at + 8], "little") for at in (0, len(column) * 8))
    return data.slice(start, end - start).to_pybytes(), offsets
