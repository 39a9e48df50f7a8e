"""Feeds texts and files to the counter that training starts with. Files are counted without making a `str` of each text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

    from nutshell.tokenizer._bpe import Counter

BATCH_CHARACTERS = 1 << 24
"""Text held at once, so that memory does not grow with the source."""


def check_text(text: object, what: str = "the text") -> str:
    """Return `text`; ValueError where it cannot be encoded, with the reason and the place."""
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


def sources(given: Iterable[str | os.PathLike[str]] | os.PathLike[str]) -> Iterable[str | os.PathLike[str]]:
    """The texts and paths given, of which one path may stand alone. ValueError for one text that does."""
    if isinstance(given, str):
        raise ValueError("expected texts or paths, got one str; give [text] for a text and pathlib.Path(...) for a file")
    return [given] if isinstance(given, os.PathLike) else given


def feed(
    counter: Counter,
    source: Iterable[str | os.PathLike[str]] | os.PathLike[str],
    progress: Callable[[str, int], object] | None = None,
) -> None:
    """Count the pieces of every text and file of `source`. `progress("read", bytes)` is called on the way."""
    from nutshell.text_files import text_blocks

    done = held = 0
    batch: list[str] = []

    def flush() -> None:
        nonlocal done, held
        try:
            counter.add(batch)
        except (UnicodeEncodeError, TypeError):
            for text in batch:
                check_text(text, "a text to train on")
            raise
        done += held
        held = 0
        batch.clear()
        if progress:
            progress("read", done)

    for item in _texts_and_files(sources(source)):
        if isinstance(item, str):
            batch.append(item)
            held += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
            if held >= BATCH_CHARACTERS:
                flush()
        elif item.suffix.lower() == ".parquet":
            for size in _count_parquet(counter, item):
                done += size
                if progress:
                    progress("read", done)
        else:
            base = done
            try:
                counter.add_file(item, progress and (lambda read, base=base: progress("read", base + read)))
            except ValueError:
                for _ in text_blocks(item):  # where bytes are not UTF-8 the reader says how to convert them
                    pass
                raise
            done += item.stat().st_size
    flush()


def _texts_and_files(source: Iterable[str | os.PathLike[str]]) -> Iterator[str | Path]:
    """Texts, and the paths of files that the counter reads itself: Parquet and plain UTF-8 text."""
    from nutshell.data.text import find_text, read_file

    for item in source:
        if isinstance(item, str):
            yield item
            continue
        if not isinstance(item, os.PathLike):
            raise ValueError(f"{item!r:.80} ({type(item).__name__}) is neither a text (str) nor a file (pathlib.Path)")
        for file in find_text(Path(item)).train:
            if file.suffix.lower() == ".parquet" or (file.suffix.lower() in (".txt", ".md") and _is_plain(file)):
                yield file
            else:
                yield from read_file(file)


def _is_plain(file: Path) -> bool:
    """Whether the file begins as UTF-8 text without a byte order mark. Other files go to the reader, which says what is wrong."""
    with file.open("rb") as content:
        head = content.read(1 << 16)
    return b"\0" not in head and not head.startswith(b"\xef\xbb\xbf")


def _count_parquet(counter: Counter, path: Path) -> Iterator[int]:
    """Count a Parquet file from Arrow's buffers while the next ones are read. Yields the bytes counted each time."""
    from nutshell.data.text import text_columns
    from nutshell.files import shown

    row = 0
    with ThreadPoolExecutor(1) as reader:
        columns = text_columns(path)
        ahead = reader.submit(next, columns, None)
        while (column := ahead.result()) is not None:
            ahead = reader.submit(next, columns, None)
            data, offsets = buffers(column)
            counter.add_column(shown(path), row, data, offsets)
            row += len(column)
            yield len(data)


def buffers(column: pyarrow.LargeStringArray) -> tuple[bytes, bytes]:
    """The bytes of a column of strings without nulls, and where each starts and the last one ends."""
    if len(column) == 0:
        return b"", b""
    _, offsets, data = column.buffers()
    offsets = offsets.slice(column.offset * 8, (len(column) + 1) * 8).to_pybytes()
    start, end = (int.from_bytes(offsets[at : at + 8], "little") for at in (0, len(column) * 8))
    return data.slice(start, end - start).to_pybytes() if data else b"", offsets
