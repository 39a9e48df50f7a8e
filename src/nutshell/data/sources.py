"""Reads a user's own files: documents for pretraining, conversations for fine-tuning.

Everything streams, so a file larger than memory is fine. Errors name the file and the line, byte or column.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from nutshell.files import files_below

DOCUMENT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".txt.gz", ".md.gz", ".jsonl.gz")
CONVERSATION_SUFFIXES = (".jsonl", ".jsonl.gz")
SHORTEST_CUT, LONGEST_CUT = 16_384, 65_536
"""A text file is cut into documents of at most so many characters, at blank lines where it has them: the more text, the longer.
Even the shortest fill a context of 2,048 tokens; a small file still becomes several documents, so that one can be held out."""

_BLOCK_BYTES = 1 << 20
_BOUNDARIES = ("\n\n", "\n", ". ", "。", " ")


def read_documents(paths: Path | str | Iterable[Path | str], *, column: str = "text") -> Iterator[str]:
    """Documents of text, Markdown, JSON-lines and Parquet files, or of folders of those (recursive, sorted by path).

    A text file becomes many documents of 16,384 to 65,536 characters; a row of a .jsonl or .parquet file is one document.
    Documents of nothing but white space are left out. Missing paths and unknown suffixes raise ValueError at once,
    broken content when the iteration reaches it, and an input without any document at its end.
    """
    files = find_files(paths, DOCUMENT_SUFFIXES)
    return _documents(files, column)


def read_conversations(
    paths: Path | str | Iterable[Path | str],
    *,
    check: Callable[[Any], Any] | None = None,
) -> list[dict[str, Any]]:
    """Conversations ``{"messages": [...]}`` from JSON-lines files or folders of those; other fields are left out.

    A line may also be the bare list of messages. ``check`` gets each list of messages, raises ValueError about roles and
    their order, which is completed with file and line, and may return the messages to keep.
    """
    conversations = []
    files = find_files(paths, CONVERSATION_SUFFIXES)
    for file in files:
        for line_number, row in _json_lines(file):
            where = f"{file}, line {line_number}"
            messages = _messages(row, where)
            if check is not None:
                try:
                    messages = check(messages) or messages
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
            conversations.append({"messages": messages})
    if not conversations:
        raise ValueError(f"no conversation in {_names(files)}: each line must hold an object with a list 'messages'")
    return conversations


def find_files(paths: Path | str | Iterable[Path | str], suffixes: tuple[str, ...]) -> list[Path]:
    """The files that ``paths`` name, folders searched recursively. In folders, hidden and other files and the folders of
    runs are passed over.

    Raises ValueError for a path that does not exist, a file of another kind, and a folder without a fitting file.
    """
    files: list[Path] = []
    accepted = ", ".join(suffixes)
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]:
        if path.is_dir():
            inside = list(files_below(path))
            fitting = [file for file in inside if file.name.lower().endswith(suffixes)]
            if not fitting:
                found = ", ".join(sorted({file.suffix or file.name for file in inside})[:10]) or "nothing"
                raise ValueError(f"no data file in the folder {path} (found: {found}); accepted are {accepted}")
            files += fitting
        elif not path.exists():
            raise ValueError(f"{path} does not exist: give a file ({accepted}) or a folder of such files")
        elif not path.name.lower().endswith(suffixes):
            kind = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise ValueError(f"{path} has {kind}; accepted are {accepted}, and folders of those")
        else:
            files.append(path)
    if not files:
        raise ValueError(f"no input path was given; accepted are {accepted}, and folders of those")
    return files


def split_text(blocks: Iterable[str], limit: int = SHORTEST_CUT) -> Iterator[str]:
    """Cuts running text into documents of at most ``limit`` characters.

    Cuts at the last blank line that fits, else at the last line end, sentence or space, else anywhere. Only the line
    ends and the spaces at a cut are lost.
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


def _documents(files: list[Path], column: str) -> Iterator[str]:
    count = 0
    for file in files:
        name = file.name.lower()
        if name.endswith(".parquet"):
            documents = _parquet_documents(file, column)
        elif name.removesuffix(".gz").endswith(".jsonl"):
            documents = _jsonl_documents(file, column)
        else:
            documents = split_text(_text_blocks(file), min(LONGEST_CUT, max(SHORTEST_CUT, file.stat().st_size // 128)))
        for document in documents:
            if document and not document.isspace():
                count += 1
                yield document
    if count == 0:
        raise ValueError(f"no text in {_names(files)}: every document is empty")


def _text_blocks(file: Path) -> Iterator[str]:
    """The text of a file in blocks, line ends made ``\\n``, a byte order mark left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    position = 0
    for block in _byte_blocks(file):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(file, position - held + error.start, error) from None
        if position == 0:
            text = text.removeprefix("\ufeff")
        position += len(block)
        yield newlines.decode(text, final=not block)


def _byte_blocks(file: Path) -> Iterator[bytes]:
    """Blocks of a file, the last one empty; .gz is unpacked on the way."""
    with _open(file) as stream:
        while block := _guarded(file, stream.read, _BLOCK_BYTES):
            yield block
        yield b""


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers (from 1) and values of a JSON-lines file; blank lines are passed over."""
    position = 0
    with _open(file) as stream:
        line_number = 0
        while line := _guarded(file, stream.readline):
            line_number += 1
            try:
                text = line.decode("utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, position + error.start, error) from None
            position += len(line)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{file}, line {line_number}: not JSON ({error}); each line must be one object") from None
            # JSON can spell half a surrogate pair, which no UTF-8 writer or tokenizer takes.
            yield line_number, _map_strings(row, _mend_surrogates) if "\\ud" in text.lower() else row


def _jsonl_documents(file: Path, column: str) -> Iterator[str]:
    for line_number, row in _json_lines(file):
        where = f"{file}, line {line_number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__} where an object with the column {column!r} is expected")
        if column not in row:
            raise _no_column(where, column, list(row))
        if not isinstance(row[column], str):
            raise ValueError(f"{where}: column {column!r} holds a {type(row[column]).__name__}, not a string")
        yield row[column]


def _parquet_documents(file: Path, column: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            check_text_column(file, parquet.schema_arrow, column)
            for group in range(parquet.num_row_groups):
                for text in parquet.read_row_group(group, columns=[column]).column(0).to_pylist():
                    yield text or ""
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet ({error}): it is damaged or incomplete") from error


def check_text_column(file: Path, schema: pyarrow.Schema, column: str) -> None:
    """Raises ValueError unless the Parquet schema has ``column`` and it holds strings."""
    if column not in schema.names:
        raise _no_column(str(file), column, schema.names)
    kind = schema.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise ValueError(f"{file}: column {column!r} is of type {kind}; a column of strings is needed")


def _messages(row: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(row, dict):
        if "messages" not in row:
            raise _no_column(where, "messages", list(row))
        row = row["messages"]
    if not isinstance(row, list) or not row:
        found = "an empty list" if row == [] else f"a {type(row).__name__}"
        raise ValueError(f"{where}: 'messages' must be a list of at least one message, found {found}")
    for number, message in enumerate(row):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            found = f"keys {sorted(message)}" if isinstance(message, dict) else f"a {type(message).__name__}"
            raise ValueError(f"{where}: message {number} must be an object with 'role' and 'content', found {found}")
        if not isinstance(message["role"], str) or not isinstance(message["content"], (str, list)):
            raise ValueError(f"{where}: message {number}: 'role' must be a string and 'content' a string or list of parts")
    return row


def _mend_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")  # type: ignore[return-value]


def _guarded(file: Path, read: Callable[..., bytes], *arguments: int) -> bytes:
    try:
        return read(*arguments)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be unpacked ({error}): it is damaged, incomplete or not gzip") from error


def _not_utf8(file: Path, position: int, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]
    return ValueError(f"{file} is not UTF-8: byte 0x{byte:02x} at offset {position}; convert it, e.g. with iconv -t UTF-8")


def _no_column(where: str, column: str, found: list[str]) -> ValueError:
    hint = "; these look like conversations, which are read for fine-tuning" if "messages" in found else ""
    return ValueError(f"{where}: no column {column!r}; found {', '.join(map(str, found)) or 'none'}{hint}")


def _names(files: list[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
