"""How exports and imports write: a result appears when it is complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nutshell.files import FULL_DISK, FullDiskError, fsync, sole_writer


def refuse_existing(path: Path) -> None:
    """FileExistsError if `path` exists: an export never overwrites anything."""
    if os.path.lexists(path):  # a link to nothing too
        raise FileExistsError(f"{path} exists. Accepted: a name that nothing has yet. Choose another, or delete it first.")


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turns errors for lack of room into FullDiskError with the name `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise FullDiskError(f"cannot write {path}: {reason}. Nothing was left behind. Make room on the disk.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder to write into, and renames it to `path` at the end. After an error nothing is left.

    FileExistsError if `path` exists; FullDiskError if there is no room.
    """
    refuse_existing(path)
    with room_for(path), sole_writer(path):
        refuse_existing(path)  # another process may have just made it
        temporary = path.parent / f".tmp-{path.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                fsync(file)
            os.rename(temporary, path)
            fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
