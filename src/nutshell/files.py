"""Files that are whole or not there: atomic writes, hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


RUN_MARKS = ("plan.json", ".lock")
"""One of these makes a folder that of a run."""
EDGE_BYTES = 1 << 16


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and those below it, in the order of their paths.

    Linked folders count, each once. Hidden ones and run folders do not: what a run has written is no input of another.
    """
    seen: set[str] = set()
    found: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen or (root != str(folder) and any(mark in names for mark in RUN_MARKS)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".") and os.path.isfile(os.path.join(root, name))]
    return iter(sorted(found))


def fingerprint(path: Path | str) -> str:
    """A hash of what a file or folder holds, whatever its name and place: sizes, and both ends of each file.

    It tells a text that was moved from one that grew or is another, without reading gigabytes. Empty where nothing is there.
    """
    parts = []
    for file in [path] if os.path.isfile(path) else files_below(Path(path)):
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
        parts.append(f"{size} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest() if parts else ""


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
