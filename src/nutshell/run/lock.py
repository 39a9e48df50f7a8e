"""One job a run folder, and signals that wait for the end of a step."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


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


@contextmanager
def run_lock(folder: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Refuse a second job on a run folder; the lock vanishes with its process, kill -9 included.

    Rank 0 holds it. Where torchrun restarts ranks, the rank 0 before may be just about to die, perhaps on another machine:
    `patience_seconds` is how long to wait for that.
    """
    new = not folder.exists()
    if other := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise FileExistsError(
            f"--out is {folder}, and {other} is a file. Accepted: a run's folder, or a new name. Give another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    deadline = time.monotonic() + patience_seconds
    while True:
        file: IO[str] = open(path, "a+")  # noqa: SIM115 - held open as long as the run
        try:
            _lock(file, path)
            break
        except (BlockingIOError, FileNotFoundError):
            file.close()
            if time.monotonic() >= deadline:
                raise ValueError(f"another job is working in {folder}. Wait for it, stop it, or give another --out.") from None
            time.sleep(0.5)
    try:
        yield
    finally:
        if new and list(folder.iterdir()) == [path]:  # bad input: leave nothing behind
            with suppress(OSError):
                path.unlink()
                folder.rmdir()
        file.close()


@contextmanager
def stop_signals(stop: list[int]) -> Iterator[None]:
    """Collect SIGTERM and the first Ctrl-C instead of dying in the middle of a step; a second Ctrl-C interrupts at once."""

    def note(number: int, _frame: object) -> None:
        stop.append(number)
        if stop.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
