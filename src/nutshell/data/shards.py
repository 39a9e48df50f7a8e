"""Parquet shards: what pretraining reads. `train-00000.parquet ..., val-00000.parquet`, one column `text`.

The documents stand in the order of their hashes (shuffle.py), so the order of the input files does not matter. A row group is the
unit of reading (a block).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from nutshell.data.rows import open_parquet
from nutshell.data.shuffle import SPLITS, Layout, scatter, shards_of, shuffle_files
from nutshell.data.text import as_text, find_text, text_column
from nutshell.files import FULL_DISK, FullDiskError, fsync, holds, read_record, sha256, shown, sole_writer, write_json, write_text

MANIFEST = "manifest.json"
FORMAT = "nutshell-shards-1"


def prepare_shards(
    paths: Path | str | list[Path | str], folder: Path | str, *, note: Callable[[str], object] = lambda line: None, **options: Any
) -> Path:
    """Turn the user's files into shards in `folder`, and return the folder to train from.

    If `paths` is a folder of shards already, that one is returned. Shards that an earlier call made of the same files with the
    same options are used again. Files that `find_text` takes for validation become the val part. `note` gets one line about
    what was read, left out and dropped; `options` are those of `Layout`.
    """
    if isinstance(paths, (str, Path)) and is_shard_folder(paths):
        return Path(paths)
    folder, found = Path(folder), find_text(paths)
    source: dict[str, Any] = {"files": [[shown(file.name), sha256(file)] for file in found.train], "options": options}
    if found.val:
        source["val_files"] = [[shown(file.name), sha256(file)] for file in found.val]
    if (folder / MANIFEST).exists():
        if read_manifest(folder).get("source") == json.loads(json.dumps(source)):
            return folder
        raise ValueError(f"{folder} holds shards of other data or settings; delete it or choose another folder")
    layout = Layout(**options)
    build_shards(lambda beside: shuffle_files(found.train, found.val, beside, layout, found.notes), folder, source, layout)
    manifest = read_manifest(folder)
    documents, dropped = manifest["documents"], manifest["duplicates_dropped"]
    line = f"{found.summary()}; {documents['train']} documents to train on, {documents['val']} held out"
    note(line + (f", {dropped} duplicates dropped" if dropped else ""))
    return folder


def is_shard_folder(folder: Path | str) -> bool:
    """Whether the folder holds train and val shards, or is a mixture of such folders (mixed.py)."""
    if holds(Path(folder) / MANIFEST, FORMAT.encode()) and read_manifest(Path(folder)).get("mixture"):
        return True
    return all(any(Path(folder).glob(f"{split}-*.parquet")) for split in SPLITS)


def write_shards(documents: Iterable[str], folder: Path | str, *, source: Any = None, **options: Any) -> Path:
    """Write documents that fit in memory as shuffled train and val shards with a `manifest.json`; returns the folder.

    Exact duplicates are dropped. `options` are those of `Layout`. The folder appears complete, by one rename.
    """
    layout, folder = Layout(**options), Path(folder)
    refuse_filled(folder)

    def shuffle(beside: Path) -> dict[str, Any]:
        return shards_of(beside, [scatter(documents, beside / "parts", "train-00000", 1, layout.seed)], 1, layout, workers=1)

    build_shards(shuffle, folder, source, layout, resume=False)
    return folder


def refuse_filled(folder: Path) -> None:
    """ValueError if the folder for new shards holds something already, is a file or the current folder, or has a name that
    Arrow cannot open."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; delete it or choose another folder for the shards")
    if folder.exists() and folder.samefile(Path.cwd()):
        raise ValueError(f"{folder} is the folder that this runs in, which cannot be replaced; choose another")
    try:
        str(folder.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{shown(folder.absolute())} is not UTF-8, as names of shards are; choose another folder") from None


def build_shards(
    shuffle: Callable[[Path], dict[str, Any]], folder: Path, source: Any, layout: Layout, *, resume: bool = True
) -> None:
    """Let `shuffle` make shards in a folder beside `folder`, and rename it when they are complete.

    With `resume`, `shuffle` finds the work of an interrupted call that had the same source and layout. An error leaves nothing
    behind, except lack of memory: then the next call resumes.
    """
    folder = Path(os.path.realpath(folder)) if folder.is_symlink() else folder  # a link stays one; resolve() fails on a loop
    with sole_writer(folder):
        refuse_filled(folder)  # another process may have just finished
        beside = folder.with_name(f".{folder.name}.partial")
        plan = json.dumps([source, asdict(layout)])
        begun = beside / "parts" / "source.json"
        try:
            if not (resume and begun.exists() and begun.read_text(encoding="utf-8") == plan):
                shutil.rmtree(beside, ignore_errors=True)
                begun.parent.mkdir(parents=True)
                write_text(begun, plan)
            facts = shuffle(beside)
            write_json(beside / MANIFEST, {"format": FORMAT, "seed": layout.seed, **facts, "source": source})
        except MemoryError:  # the next call resumes
            raise
        except Exception as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                full = f"{folder}: the disk is full; nothing was left behind. Shards and their parts need as much room as the"
                raise FullDiskError(f"{full} text: make it, or name another disk.") from error
            raise
        shutil.rmtree(begun.parent)
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
        fsync(folder.parent)


class Shards:
    """A folder of shards, read by split and block (a row group). Made by `open_shards`."""

    def __init__(self, folder: Path, on_error: Literal["stop", "skip"]):
        self.folder, self.on_error = folder, on_error
        self.problems: list[str] = []
        """With on_error="skip": what was skipped, and why."""
        self._bytes: dict[Path, int] = {}
        self._blocks: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
        self._rows: dict[tuple[Path, int], int] = {}
        for split in SPLITS:
            for file in sorted(folder.glob(f"{split}-*.parquet")):
                try:
                    rows = _row_groups(file)
                    self._blocks[split] += [(file, group) for group in range(len(rows))]
                    self._rows |= {(file, group): count for group, count in enumerate(rows)}
                    self._bytes[file] = file.stat().st_size
                except ValueError as error:
                    self._problem(error)

    def blocks(self, split: str) -> int:
        """Number of blocks in a split; 0 if it has no shard."""
        return len(self._blocks[split])

    def rows(self, split: str) -> list[int]:
        """Number of documents in each block, empty ones included."""
        return [self._rows[block] for block in self._blocks[split]]

    def block_name(self, split: str, block: int) -> str:
        """File and row group, for messages."""
        file, group = self._blocks[split][block]
        return f"{file.name} row group {group}"

    def read(self, split: str, block: int) -> list[str]:
        """The documents of one block. A damaged block raises ValueError; with on_error="skip" it is empty."""
        file, group = self._blocks[split][block]
        try:
            with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as parquet:
                column = text_column(file, parquet.schema_arrow)
                chunks = parquet.read_row_group(group, columns=[column]).column(0).chunks
                texts = [text for chunk in chunks for text in as_text(chunk, "row", 0).to_pylist()]
                if len(texts) != parquet.metadata.row_group(group).num_rows:
                    raise OSError(f"{len(texts)} rows where {parquet.metadata.row_group(group).num_rows} are promised")
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            self._problem(ValueError(f"shard {file}, row group {group} cannot be read ({error}): it is damaged"))
            return []
        return [text for text in texts if text]

    def fingerprint(self, split: str) -> str:
        """A hash that changes with the shards of a split: their names, sizes and number of row groups when they were opened."""
        files = sorted({file for file, _ in self._blocks[split]})
        parts = [[file.name, self._bytes[file]] for file in files]
        return hashlib.sha256(json.dumps(["text", parts, self.blocks(split)]).encode()).hexdigest()[:16]

    def _problem(self, error: ValueError) -> None:
        if self.on_error == "stop":
            raise error
        if str(error) not in self.problems:
            self.problems.append(str(error))


def open_shards(folder: Path | str, *, on_error: Literal["stop", "skip"] = "stop") -> Shards:
    """Open a folder of `train-*.parquet` and `val-*.parquet`.

    A damaged or empty shard raises ValueError with its name; with on_error="skip" it is left out and listed in `problems`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; prepare shards there first (nutshell data)")
    shards = Shards(folder, on_error)
    if shards.blocks("train") == 0:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"no readable train-*.parquet in {folder} (found: {found}); prepare shards with nutshell data")
    return shards


def _row_groups(file: Path) -> list[int]:
    """Number of rows in each row group."""
    with open_parquet(file) as parquet:
        text_column(file, parquet.schema_arrow)
        if parquet.metadata.num_rows == 0:
            raise ValueError(f"shard {file} is empty: it has no rows; delete it or prepare the data again")
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards; empty if there is none, ValueError if it is damaged."""
    return read_record(folder / MANIFEST, f"Delete {folder} and prepare again.")
