"""One job a run folder, and signals that wait for the end of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nutshell.files import locked


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
    if link := next((place for place in (folder, *folder.parents) if place.is_symlink() and not place.exists()), None):
        raise FileNotFoundError(
            f"--out is {folder}, and {link} is a link to {os.readlink(link)}, which is not there. Is its disk mounted? Make that "
            "folder, or give another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    taken = f"another job is working in {folder}. Wait for it, stop it, or give another --out."
    with locked(path, taken, patience_seconds):
        try:
            yield
        finally:
            if new and list(folder.iterdir()) == [path]:  # bad input: leave nothing behind
                with suppress(OSError):
                    path.unlink()
                    folder.rmdir()


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
