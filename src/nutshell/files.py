"""Files: written whole or not at all, by one process, hashed, and found in folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write that finds no room: disk, quota, limit on the size of a file."""


class FullDiskError(OSError):
    """There was no room to make something new, and nothing of it is left behind."""

    exit_code = 2


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
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
"""The stages of training in their order; each has a folder in a run."""
_RUN_PARTS = {*STAGES, "data", "tokenizer", "report", "mixture"}
_RUN_PARTS |= {"plan.json", "sources.json", "conversations.jsonl", "metrics.jsonl", "rollouts.jsonl", "report.json", "report.md"}
EDGE_BYTES = 1 << 16  # read of a file's beginning and end


def files_below(top: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """The files in a folder and below it. Links are followed, and each file comes once, however many links lead to it.

    Hidden files are skipped, and so is what runs have written, since that is not input for another run. `left_out` counts what
    was skipped.
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
                if _is_run(path) or holds(path / "manifest.json", b"nutshell-shards"):
                    left_out["run folder"] += 1
                else:
                    folders.append(entry)
            elif path.is_file():
                yield path
            else:
                left_out["broken link" if path.is_symlink() else "special file"] += 1


def _refuse(error: OSError) -> None:
    """A folder that can't be listed is an error: `os.walk` would skip it silently."""
    raise error


def _is_run(folder: Path) -> bool:
    """Whether nutshell has written a run, shards or a sweep there."""
    marks = (("data/manifest.json", b"nutshell-shards"), ("plan.json", b'"recipe"'), ("metrics.jsonl", b'"stage"'))
    metrics = folder / "metrics.jsonl"
    return any(holds(folder / name, mark) for name, mark in marks) or (metrics.is_file() and not metrics.stat().st_size)


def holds(file: Path, mark: bytes) -> bool:
    """Whether the file exists and has `mark` in its first 64 KB."""
    try:
        with file.open("rb") as content:
            return mark in content.read(EDGE_BYTES)
    except OSError:
        return False


def fingerprint(path: Path | str) -> str:
    """A hash of the content of a file or folder, whatever its name and place: the size and both ends of each file.

    It tells a text that was only moved from one that has changed, without reading gigabytes. Empty if nothing is there.
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
    """Put `path` into OSErrors that name no file (a full disk does that) or only the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def locked(path: Path, taken: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`. The lock ends with its process, even after kill -9. ValueError(`taken`) if another process still
    has it after `patience_seconds`."""
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
    """Only one process at a time may make a folder: a second one would delete what the first has so far."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.absolute().with_name(f".{folder.absolute().name}.lock")
    with locked(path, f"another process is writing {folder}. Wait for it, stop it, or name another folder."):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows can't while it is open
                path.unlink()


def _lock(file: IO[str], path: Path) -> None:
    """Take the lock without waiting; BlockingIOError if another process has it."""
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
    """Write a file atomically: it is the old one or the new one, never half of one. A link stays a link."""
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
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. Lone surrogates, which names of files that are not UTF-8 have, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def read_record(path: Path, way_out: str, *needed: str) -> dict[str, Any]:
    """Read back what `write_json` wrote about a run or a folder; empty if there is no such file.

    ValueError, which ends with `way_out`, if it is damaged: not JSON, not an object, or without a key that is `needed`.
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
    """A path for messages: bytes that are not UTF-8 and control characters become U+FFFD."""
    return re.sub("[\x00-\x1f\x7f]", "\ufffd", os.fsencode(path).decode("utf-8", "replace"))


def json_kind(value: Any) -> str:
    """The type of a JSON value in words, for messages."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
