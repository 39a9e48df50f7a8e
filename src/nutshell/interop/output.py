"""What exports and imports write: there when it is whole, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nutshell.files import FULL_DISK, FullDiskError, fsync, sole_writer

TEMPERATURE, TOP_K = 0.4, 50
"""What exported models sample with unless told otherwise."""


def refuse_existing(path: Path) -> None:
    """FileExistsError where `path` exists: an export never writes over anything."""
    if os.path.lexists(path):  # a link to nothing too
        raise FileExistsError(f"{path} exists. Accepted: a name that nothing has yet. Choose another, or delete it first.")


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """FullDiskError that names `path` where there is no room to write it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise FullDiskError(f"cannot write {path}: {reason}. Nothing was left behind. Make room on the disk.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty temporary folder to write into, which gets the name `path` at the end. After an error nothing is left.

    FileExistsError where `path` exists; FullDiskError where there is no room.
    """
    refuse_existing(path)
    with room_for(path), sole_writer(path):
        refuse_existing(path)  # another process has just made it
        temporary = path.parent / f".tmp-{path.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                fsync(file)
            os.rename(temporary, path)
            fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
