"""Texts on their way in: checked one by one, read from files, fed to the counter that training starts with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def flush() -> None:
        nonlocal done, held
        _count(counter, batch)
        done += held
        held = 0
        batch.clear()
        if progress:
            progress("read", done)

    for item in _texts(source):
        if isinstance(item, Path):
            flush()
            base = done
            counter.add_file(item, progress and (lambda read, base=base: progress("read", base + read)))
            done += item.stat().st_size
            continue
        batch.append(item)
        held += len(item)
        if held >= BATCH_CHARACTERS:
            flush()
    flush()


def _count(counter: Counter, batch: list[str]) -> None:
    try:
        counter.add(batch)
    except (UnicodeEncodeError, TypeError):
        for text in batch:
            check_text(text, "a text to train on")
        raise


def _texts(source: Iterable[str | os.PathLike[str]]) -> Iterator[str | Path]:
    """Texts, and the paths of files that are one text each."""
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
    elif path.suffix == ".txt":
        yield path
    elif path.suffix == ".jsonl":
        yield from _jsonl(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
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
        yield item.read_text(encoding="utf-8") if isinstance(item, Path) else item


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} can't be read as Parquet: {error}") from None
    with file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column 'text'; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
