"""Files: written whole or not at all, hashed, unpacked on the way in, read as JSON lines."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

COMPRESSED = {".gz": ("gzip", "gzip -dc"), ".bz2": ("bz2", "bzip2 -dc"), ".zst": ("zstd", "zstd -dc")}
"""Suffixes that are unpacked while reading: Arrow's name of the codec, and the command that does the same."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write for which there is no room."""


class FullDiskError(OSError):
    """Something new could not be made for lack of room, and nothing of it is left behind."""

    exit_code = 2


def fsync(path: Path) -> None:
    """Put a file, or the entries of a folder, on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows can't open a folder to flush it
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:  # nor can some network mounts
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


STAGES = ("pretrain", "midtrain", "sft", "dpo", "rl")
"""Of training, in their order: each has its folder in a run."""
_RUN_PARTS = {*STAGES, "data", "tokenizer", "report", "mixture"}
_RUN_PARTS |= {"plan.json", "sources.json", "conversations.jsonl", "metrics.jsonl", "rollouts.jsonl", "report.json", "report.md"}
EDGE_BYTES = 1 << 16  # read of a file's beginning and end


def files_below(top: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Files of a folder and those below it, links followed; each is seen once, whatever links lead to it.

    Hidden files do not count, nor what runs have written: it is no input of another. `left_out` counts those passed over.
    """
    left_out = Counter() if left_out is None else left_out
    seen = {os.path.realpath(top)}
    top_is_run = _is_run(top)
    for name, folders, files in os.walk(top, followlinks=True, onerror=_refuse):
        here = Path(name)
        entries = sorted(entry for entry in (*folders, *files) if not entry.startswith("."))
        if here == top and top_is_run:
            left_out["run folder"] += 1
            entries = [entry for entry in entries if entry not in _RUN_PARTS]
        folders[:] = []
        for entry in entries:
            path = here / entry
            real = os.path.realpath(path)
            if real in seen:
                continue
            seen.add(real)
            if path.is_dir():
                if _is_run(path) or _holds(path / "manifest.json", b"nutshell-shards"):
                    left_out["run folder"] += 1
                else:
                    folders.append(entry)
            elif path.is_file():
                yield path
            else:
                left_out["broken link" if path.is_symlink() else "special file"] += 1


def _refuse(error: OSError) -> None:
    """What can't be listed is not passed over in silence."""
    raise error


def _is_run(folder: Path) -> bool:
    """Whether nutshell writes runs, shards or a sweep there."""
    marks = (("data/manifest.json", b"nutshell-shards"), ("plan.json", b'"recipe"'), ("metrics.jsonl", b'"stage"'))
    metrics = folder / "metrics.jsonl"
    return any(_holds(folder / name, mark) for name, mark in marks) or (metrics.is_file() and not metrics.stat().st_size)


def _holds(file: Path, mark: bytes) -> bool:
    try:
        with file.open("rb") as content:
            return mark in content.read(EDGE_BYTES)
    except OSError:
        return False


def fingerprint(path: Path | str) -> str:
    """A hash of what a file or folder holds, whatever its name and place: sizes, and both ends of each file.

    It distinguishes a text that was moved from one that has grown or is another, without reading gigabytes. Empty where
    there is nothing.
    """
    path, parts = Path(path), []
    for file in files_below(path) if path.is_dir() else [path] if path.is_file() else []:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
        parts.append(f"{size} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest() if parts else ""


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An error of the system that names no file, as those of a full disk, or a temporary one, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def locked(path: Path, taken: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; it vanishes with its process, kill -9 included. ValueError(`taken`) where another process has it
    for longer than `patience_seconds`."""
    deadline = time.monotonic() + patience_seconds
    while True:
        file: IO[str] = open(path, "a+")  # noqa: SIM115 - held open as long as the lock
        try:
            _lock(file, path)
            break
        except (BlockingIOError, FileNotFoundError):
            file.close()
            if time.monotonic() >= deadline:
                raise ValueError(taken) from None
            time.sleep(0.5)
    try:
        yield
    finally:
        file.close()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Refuse a second process that is about to make the same folder, and so would delete what this one has so far."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.absolute().with_name(f".{folder.absolute().name}.lock")
    with locked(path, f"another process is writing {folder}. Wait for it, stop it, or name another folder."):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows can't while it is open
                path.unlink()


def _lock(file: IO[str], path: Path) -> None:
    """Take the lock without waiting; BlockingIOError where another process has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            raise BlockingIOError from error
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # some network mounts
            print(f"{path} can't be locked here ({error}): see to it that no second job works in its folder.", file=sys.stderr)
            return
        raise
    if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # its last holder has just removed it
        raise BlockingIOError


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: the old one or the new one, never half of one. A link stays one."""
    if path.exists() and not path.is_file():  # a pipe or a device, as /dev/stdout, is not replaced
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # of this process: two may write the same file at once
    try:
        with naming(path, temporary):
            temporary.write_text(text, encoding="utf-8", newline="\n")
            fsync(temporary)
            os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. Half surrogates (names of files that are not UTF-8) are escaped and read back the same."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def read_record(path: Path, way_out: str, *needed: str) -> dict[str, Any]:
    """What `write_json` wrote about a run or a folder; empty where there is no such file.

    ValueError, with the way out, where it is damaged: no JSON, no object, or without a key that is `needed`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(found, dict) else f"it holds {json_kind(found)}"
        wrong = wrong or ", ".join(f"{key} is missing" for key in needed if key not in found)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ValueError(f"{path} is damaged ({wrong}). {way_out}")
    return found


def shown(path: Path | str) -> str:
    """A path for messages: what is not UTF-8 in its name, or moves the cursor, becomes U+FFFD."""
    return re.sub("[\x00-\x1f\x7f]", "\ufffd", os.fsencode(path).decode("utf-8", "replace"))


def kind_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression: `.jsonl` of A.JSONL.gz."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def read_blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """Bytes of a file, unpacked; not empty."""
    return _read(path, lambda stream: stream.read(size))


def _read(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    codec = COMPRESSED.get(path.suffix.lower(), ("", ""))[0]
    if not codec:
        with open(path, "rb") as plain:
            yield from iter(lambda: read(plain), b"")
        return
    import pyarrow

    try:
        with open(path, "rb") as plain, pyarrow.input_stream(plain, compression=codec) as packed:
            stream: Any = io.BufferedReader(packed)
            yield from iter(lambda: read(stream), b"")
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{shown(path)} cannot be unpacked ({error}): it is damaged, incomplete or not {codec}") from error


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def encoding_of(file: Path) -> str:
    """What a byte order mark says; else UTF-8."""
    start = next(read_blocks(file), b"")
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def text_blocks(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The text of a file in blocks, line ends made ``\\n``, a byte order mark left out. ValueError for bytes that are none."""
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


def json_kind(value: Any) -> str:
    """What a value of JSON is, in words for messages."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def json_rows(path: Path, bad: Callable[[str, ValueError], object] | None = None) -> Iterator[tuple[str, Any]]:
    """Each value of a file of JSON lines, and of a .json file each item of its list, with its place for messages.

    Half a surrogate pair, which JSON can spell and no tokenizer takes, becomes U+FFFD. A line that is not JSON raises ValueError
    with file and line, or is handed with its error to `bad`, and reading goes on.
    """
    if kind_of(path) == ".json":
        content = b"".join(read_blocks(path))
        try:
            values = _parse(path, shown(path), content, 0)
        except _Several:
            pass
        else:
            items = values if isinstance(values, list) else [values]
            yield from ((f"{shown(path)}, item {number}", value) for number, value in enumerate(items, 1))
            return
    position, name = 0, shown(path)
    for number, line in enumerate(_read(path, lambda stream: stream.readline()), 1):
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


class _Several(ValueError):
    """More than one JSON value in a text."""


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
        kind = _Several if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" else ValueError
        hint = "; a list over several lines is read from a .json file" if text.lstrip().startswith("[") else ""
        raise kind(f"{place}: not JSON ({error}); each line must be one object{hint}") from None
    return _mended(value) if "\\" in text and "\\ud" in text.lower() else value  # the first is a fast search


def _decoded(path: Path, content: bytes, position: int) -> str:
    """The text of some bytes, which are at `position` in the file, without a byte order mark."""
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
    """The error for byte `at` of a block, which is at `position` in the file, with a command that mends it."""
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
