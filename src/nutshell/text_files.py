"""Text files, read in pieces: unpacked, decoded, as JSON lines. Errors name the line or the byte, and how to mend the file."""

from __future__ import annotations

import codecs
import io
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nutshell.files import shown

COMPRESSED = {".gz": ("gzip", "gzip -dc"), ".bz2": ("bz2", "bzip2 -dc"), ".zst": ("zstd", "zstd -dc")}
"""Suffixes of files that are decompressed while reading: Arrow's name of the codec, and a command that does the same."""


def kind_of(path: Path) -> str:
    """The suffix in lower case, ignoring that of a compression: `.jsonl` for A.JSONL.gz."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file as a stream, decompressed. ValueError if it cannot be unpacked."""
    codec = COMPRESSED.get(path.suffix.lower(), ("", ""))[0]
    if not codec:
        with open(path, "rb") as plain:
            yield plain
        return
    import pyarrow

    try:
        with open(path, "rb") as plain, pyarrow.input_stream(plain, compression=codec) as packed:
            stream: Any = io.BufferedReader(packed)
            yield stream
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{shown(path)} cannot be unpacked ({error}): it is damaged, incomplete or not {codec}") from error


def read_blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file in blocks, decompressed."""
    with opened(path) as stream:
        yield from iter(lambda: stream.read(size), b"")


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def encoding_of(file: Path) -> str:
    """The encoding that a byte order mark names; UTF-8 without one."""
    start = next(read_blocks(file), b"")
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def text_blocks(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The text of a file in blocks, with ``\\n`` at line ends and no byte order mark. ValueError for bytes that are not text."""
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    position, block = 0, b""
    for block in read_blocks(file):
        if encoding == "utf-8" and (at := block.find(0)) >= 0:
            raise not_utf8(file, position + at, block, at)
        held = decoder.getstate()[0]
        try:
            text = decoder.decode(block)
        except UnicodeError as error:  # of UTF-16 without a mark it is no UnicodeDecodeError
            if encoding == "utf-8" and isinstance(error, UnicodeDecodeError):
                raise not_utf8(file, position - len(held) + error.start, held + block, error.start) from None
            raise ValueError(f"{shown(file)} is not {encoding} text ({str(error)[:200]})") from None
        yield newlines.decode(text.removeprefix("\ufeff") if position == 0 else text)
        position += len(block)
    if (held := decoder.getstate()[0]) and encoding != "utf-8":
        raise ValueError(f"{shown(file)} is not {encoding} text: it ends inside a character")
    if held:
        raise not_utf8(file, position - len(held), held, 0)
    yield newlines.decode("", final=True)


def json_rows(path: Path, bad: Callable[[str, ValueError], object] | None = None) -> Iterator[tuple[str, Any]]:
    """(place for messages, value) of each line of a file of JSON lines, or of each item of the list in a .json file.

    Lone surrogates, which JSON can spell and no tokenizer takes, become U+FFFD. A line that is not JSON raises ValueError
    with file and line; with `bad`, its place and error go there and reading goes on.
    """
    if kind_of(path) == ".json" and not _has_values_by_line(path):
        value = _parse(path, shown(path), b"".join(read_blocks(path)), 0)
        items = value if isinstance(value, list) else [value]
        yield from ((f"{shown(path)}, item {number}", item) for number, item in enumerate(items, 1))
        return
    position, name = 0, shown(path)
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            place = f"{name}, line {number}"
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                try:
                    value = _parse(path, place, line, position)
                except ValueError as error:
                    if bad is None:
                        raise
                    bad(place, error)
                else:
                    yield place, value
            position += len(line)


def _has_values_by_line(path: Path) -> bool:
    """Whether a .json file, as many do, holds JSON lines: it has several lines, and the first is a whole value."""
    with opened(path) as stream:
        lines = (line for line in stream if line.strip())
        first, second = next(lines, b""), next(lines, b"")
    if not second:
        return False
    try:
        _parse(path, "", first, 0)
    except ValueError:
        return False
    return True


def _parse(path: Path, place: str, content: bytes, position: int) -> Any:
    text = _decoded(path, content, position)
    try:
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            raise
        except ValueError:  # a number of more than 4,300 digits
            value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        hint = "; a list over several lines is read from a .json file" if text.lstrip().startswith("[") else ""
        raise ValueError(f"{place}: not JSON ({error}); each line must be one object{hint}") from None
    return _mended(value) if "\\" in text and "\\ud" in text.lower() else value  # the first is a fast search


def _decoded(path: Path, content: bytes, position: int) -> str:
    """Bytes from `position` of the file as text, without a byte order mark."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, position + error.start, content, error.start) from None
    if "\0" in text:
        raise not_utf8(path, position + content.index(0), content, content.index(0))
    return text


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return {key: _mended(item) for key, item in value.items()} if isinstance(value, dict) else value


def not_utf8(path: Path, position: int, block: bytes, at: int) -> ValueError:
    """The error for byte `at` of a block, which is byte `position` of the file, with a command that converts the file."""
    name, unpack = shlex.quote(shown(path)), COMPRESSED.get(path.suffix.lower(), ("", ""))[1]
    source = f"{unpack} {name} | " if unpack else ""
    wrong = f"{shown(path)} is not UTF-8 text: byte 0x{block[at]:02x} at offset {position}"
    even, odd = block[::2].count(0), block[1::2].count(0)
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-32" if block[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "UTF-16"
    elif (even or odd) and min(even, odd) * 20 < max(even, odd) and max(even, odd) * 50 > len(block):
        encoding = "UTF-16LE" if odd > even else "UTF-16BE"
    elif block[at] == 0:
        remove = f"{source}tr -d '\\000'" + ("" if unpack else f" < {name}")
        return ValueError(f"{wrong}; a binary file? From text, remove such bytes: {remove} > new{kind_of(path)}")
    else:
        encoding = "WINDOWS-1252"
    guess = "If it is Western European, convert it" if encoding == "WINDOWS-1252" else f"It looks like {encoding}: convert it"
    convert = f"{source}iconv -f {encoding} -t UTF-8" + ("" if unpack else f" {name}")
    return ValueError(f"{wrong}. {guess}: {convert} > new{kind_of(path)}")
