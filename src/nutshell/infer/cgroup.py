"""A control group for one run, where this process may make one: it also counts what the kernel holds for a program, such as the
inodes of a million empty files, which no limit of a process bounds. Version 1 and 2 of the interface are known.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from nutshell.machine import CGROUP, MEMORY_LIMITS

EVENTS = ("memory.events", "memory.oom_control")  # both have a line "oom_kill N"
REMOVE_SECONDS = 2.0

_numbers = itertools.count()


@contextlib.contextmanager
def memory_group(memory: int) -> Iterator[Path | None]:
    """A fresh group of at most `memory` bytes, removed afterwards; None where there can be none."""
    parent = parent_group()
    folder = parent / f"nutshell-{os.getpid()}-{next(_numbers)}" if parent else None
    if folder is None:
        yield None
        return
    folder.mkdir()
    try:
        next(folder / name for name in MEMORY_LIMITS if (folder / name).exists()).write_text(str(memory))
        yield folder
    finally:
        _remove(folder)


def ran_out(folder: Path) -> bool:
    """Whether the kernel ended a process because the group was full."""
    text = next(folder / name for name in EVENTS if (folder / name).exists()).read_text()
    return any(line.startswith("oom_kill ") and int(line.split()[1]) > 0 for line in text.splitlines())


@functools.cache
def parent_group() -> Path | None:
    """The folder in which groups with a limit of memory can be made and entered."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = {kind: path.lstrip("/") for _, kind, path in (line.split(":", 2) for line in lines)}
    for root, kind in ((CGROUP / "memory", "memory"), (CGROUP, "")):
        here = root / own.get(kind, "")
        for parent in (here, here.parent, root):  # version 2 makes none below a group that holds processes itself
            if os.access(parent / "cgroup.procs", os.W_OK) and _works(parent):
                _sweep(parent)
                return parent
    return None


def _sweep(parent: Path) -> None:
    """Remove the empty groups of processes that were killed before they could."""
    for folder in parent.glob("nutshell-*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):  # a group that still holds a process stays
                folder.rmdir()


def _works(parent: Path) -> bool:
    folder = parent / f"nutshell-{os.getpid()}-probe"
    try:
        folder.mkdir()
    except OSError:
        return False
    try:
        return any((folder / name).exists() for name in MEMORY_LIMITS)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a group; the last process in it may still be on its way out."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
