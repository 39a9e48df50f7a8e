"""Parquet shards: what pretraining reads. ``train-00000.parquet ..., val-00000.parquet``, one column ``text``.

Which side a document falls on depends on its own hash and the seed only, so train and val are disjoint by construction,
duplicates or not, and another order of the files changes nothing. A row group is the unit of reading (a block).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from nutshell.data.text import as_text, check_text_column, find_column, find_text
from nutshell.files import fsync, sha256, shown, write_json

MANIFEST = "manifest.json"
SPLITS = ("train", "val")
LEAST_VAL_CHARACTERS = 20_000
"""Of the val part of a small text, but never more than a tenth of the document that it is cut from."""
SHORT_TEXT = 200  # characters; so little is not cut


def prepare_shards(
    paths: Path | str | list[Path | str], folder: Path | str, *, note: Callable[[str], object] = lambda line: None, **options: Any
) -> Path:
    """Turns the user's files into shards under ``folder`` and returns the folder to train from.

    A folder that holds ``train-*.parquet`` and ``val-*.parquet`` already is returned as it is. Shards that an earlier
    call wrote from the same files with the same options are used again. Files that `find_text` takes for validation are the
    val part. ``note`` hears one line about what was read, left out and dropped; ``options`` are those of `write_shards`.
    """
    many = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if len(many) == 1 and is_shard_folder(many[0]):
        return Path(many[0])
    folder = Path(folder)
    found = find_text(many)
    source: dict[str, Any] = {"files": [[shown(file.name), sha256(file)] for file in found.train], "options": options}
    if found.val:
        source["val_files"] = [[shown(file.name), sha256(file)] for file in found.val]
    if (folder / MANIFEST).exists():
        existing = read_manifest(folder).get("source")
        if existing == json.loads(json.dumps(source)):
            return folder
        raise ValueError(f"{folder} holds shards of other data or settings; delete it or choose another folder")
    held_out = found.val_documents() if found.val else None
    write_shards(found.documents(), folder, held_out=held_out, source=source, **options)
    manifest = read_manifest(folder)
    documents, dropped = manifest["documents"], manifest["duplicates_dropped"]
    line = f"{found.summary()}; {documents['train']} documents to train on, {documents['val']} held out"
    note(line + (f", {dropped} duplicates dropped" if dropped else ""))
    return folder


def is_shard_folder(folder: Path | str) -> bool:
    """Whether the folder itself holds both train and val shards."""
    return all(any(Path(folder).glob(f"{split}-*.parquet")) for split in SPLITS)


def write_shards(
    documents: Iterable[str],
    folder: Path | str,
    *,
    val_fraction: float = 0.01,
    val_documents: int | None = None,
    rows_per_group: int = 256,
    shard_characters: int = 32_000_000,
    seed: int = 0,
    source: Any = None,
    held_out: Iterable[str] | None = None,
) -> Path:
    """Writes documents as shuffled train and val shards with a ``manifest.json``; returns the folder.

    Documents that are exact duplicates of an earlier one are dropped. ``val_documents`` sets the size of the val part
    exactly, else ``val_fraction`` does in expectation; both parts always get at least one document. A shard holds
    about ``shard_characters``, and documents are shuffled within it. The folder appears by one rename, complete. Where
    ``held_out`` is given, those documents are the val part, and what equals one of them is not trained on.
    """
    folder = Path(folder)
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction is {val_fraction}; it must be above 0 and at most 0.5")
    for name, value in (("val_documents", val_documents), ("rows_per_group", rows_per_group)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; delete it or choose another folder for the shards")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        train, val = (_Writer(partial, split, rows_per_group, shard_characters, seed) for split in SPLITS)
        fraction = None if val_documents else val_fraction
        duplicates = _divide(documents, train, val, fraction, val_documents or 1, seed, held_out)
        train.flush()
        val.flush()
        manifest = {
            "format": "nutshell-shards-1",
            "seed": seed,
            "duplicates_dropped": duplicates,
            "documents": {"train": train.documents, "val": val.documents},
            "characters": {"train": train.characters, "val": val.characters},
            "files": {**train.files, **val.files},
            "source": source,
        }
        write_json(partial / MANIFEST, manifest)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _divide(
    documents: Iterable[str],
    train: _Writer,
    val: _Writer,
    fraction: float | None,
    held_size: int,
    seed: int,
    held_out: Iterable[str] | None,
) -> int:
    """Sends each document to one side; returns how many duplicates were dropped.

    The ``held_size`` documents of the smallest hashes are held back to the end: they are the val part when its size is
    given, and otherwise make sure that it is not empty. With ``held_out`` the val part is that.
    """
    seen: set[bytes] = set()
    held: list[tuple[int, str]] = []  # a heap with the largest hash on top
    threshold = -1 if fraction is None else int(fraction * 2**64)
    salt = seed.to_bytes(16, "little", signed=True)
    duplicates = 0
    sides = ((val, held_out), (train, documents)) if held_out is not None else ((None, documents),)
    for side, document in ((side, document) for side, texts in sides for document in texts):
        digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt).digest()
        if digest in seen:
            duplicates += 1
            continue
        seen.add(digest)
        if side is not None:
            side.add(document)
            continue
        value = int.from_bytes(digest[:8], "little")
        if len(held) < held_size:
            heapq.heappush(held, (-value, document))
            continue
        last, passed_on = heapq.heappushpop(held, (-value, document))
        (val if -last < threshold else train).add(passed_on)
    if held_out is not None:
        if not train.documents:
            raise ValueError("every document to train on is one of those held out for validation as well; give other text")
        return duplicates
    if not held:
        raise ValueError("no document to write: the input is empty")
    texts = [document for _, document in sorted(held, reverse=True)]
    if fraction is None and train.documents == 0:
        raise ValueError(f"{len(seen)} distinct documents, of which {held_size} for val, leave none for training")
    if fraction is None:
        if train.documents == 0:
            train.add(texts.pop(0))
        for text in texts:
            val.add(text)
        return duplicates
    # The document held back fills the part up to its share of the characters; what is more of it is trained on.
    (text,) = texts
    wanted = int(fraction * (train.characters + val.characters + len(text))) - val.characters
    wanted = max(wanted, 0 if val.documents else min(LEAST_VAL_CHARACTERS, max(1, len(text) // 10)))
    if train.documents and len(text) <= max(2 * wanted, SHORT_TEXT):
        val.add(text)
    elif wanted:
        kept, rest = _cut(text, wanted)
        val.add(kept)
        train.add(rest)
    else:
        train.add(text)
    return duplicates


def _cut(text: str, characters: int) -> tuple[str, str]:
    """About the first `characters` of a text and the rest: cut at a space near there, or anywhere (Chinese, DNA)."""
    if len(text) < 10:
        raise ValueError(f"the only document has {len(text)} characters: too little for a train and a val part")
    space = text.rfind(" ", characters // 2, characters + 1)
    cut = space if space > 0 and text[:space].strip() and text[space:].strip() else characters
    kept, rest = text[:cut].strip(), text[cut:].strip()
    return kept, rest


class _Writer:
    """Collects the documents of one split and writes a shard whenever enough characters are there."""

    def __init__(self, folder: Path, split: str, rows_per_group: int, shard_characters: int, seed: int):
        self.folder, self.split = folder, split
        self.rows_per_group, self.shard_characters = rows_per_group, shard_characters
        self.random = random.Random(f"{seed}-{split}")
        self.buffer: list[str] = []
        self.buffered_characters = self.documents = self.characters = 0
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, document: str) -> None:
        self.buffer.append(document)
        self.documents += 1
        self.characters += len(document)
        self.buffered_characters += len(document)
        if self.buffered_characters >= self.shard_characters:
            self.flush()

    def flush(self) -> None:
        if not self.buffer:
            return
        self.random.shuffle(self.buffer)
        path = self.folder / f"{self.split}-{len(self.files):05d}.parquet"
        schema = pyarrow.schema([pyarrow.field("text", pyarrow.large_string(), nullable=False)])
        table = pyarrow.table([self.buffer], schema=schema)
        pyarrow.parquet.write_table(
            table,
            path,
            row_group_size=self.rows_per_group,
            compression="zstd",
            use_dictionary=False,  # every text differs
            write_statistics=False,
            write_page_checksum=True,  # lets a reader notice a flipped bit, which would pass for text otherwise
        )
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            data = file.read()
        self.files[path.name] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "documents": len(self.buffer),
            "characters": self.buffered_characters,
        }
        self.buffer, self.buffered_characters = [], 0


class Shards:
    """A folder of shards, addressed by split and block (a row group). Made by `open_shards`."""

    def __init__(self, folder: Path, column: str, on_error: Literal["stop", "skip"]):
        self.folder, self.column, self.on_error = folder, column, on_error
        self.problems: list[str] = []
        """What was skipped and why, with on_error="skip"."""
        self._bytes: dict[Path, int] = {}
        self._blocks: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            for file in sorted(folder.glob(f"{split}-*.parquet")):
                try:
                    self._blocks[split] += [(file, group) for group in range(_row_groups(file, column))]
                    self._bytes[file] = file.stat().st_size
                except ValueError as error:
                    self._problem(error)

    def blocks(self, split: str) -> int:
        """How many blocks a split has; 0 where it has no shard."""
        return len(self._blocks[split])

    def block_name(self, split: str, block: int) -> str:
        """A name for messages: the file and its row group."""
        file, group = self._blocks[split][block]
        return f"{file.name} row group {group}"

    def read(self, split: str, block: int) -> list[str]:
        """The documents of one block. A damaged block raises ValueError, or is empty with on_error="skip"."""
        file, group = self._blocks[split][block]
        try:
            with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as parquet:
                name = _column(file, parquet.schema_arrow, self.column)
                chunks = parquet.read_row_group(group, columns=[name]).column(0).chunks
                texts = [text for chunk in chunks for text in as_text(chunk, "row", 0).to_pylist()]
                if len(texts) != parquet.metadata.row_group(group).num_rows:
                    raise OSError(f"{len(texts)} rows where {parquet.metadata.row_group(group).num_rows} are promised")
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            self._problem(ValueError(f"shard {file}, row group {group} cannot be read ({error}): it is damaged"))
            return []
        return [text for text in texts if text]

    def fingerprint(self, split: str) -> str:
        """Changes when the shards of a split do: their names, sizes and number of row groups, as they were when opened."""
        files = sorted({file for file, _ in self._blocks[split]})
        parts = [[file.name, self._bytes[file]] for file in files]
        return hashlib.sha256(json.dumps([self.column, parts, self.blocks(split)]).encode()).hexdigest()[:16]

    def _problem(self, error: ValueError) -> None:
        if self.on_error == "stop":
            raise error
        if str(error) not in self.problems:
            self.problems.append(str(error))


def open_shards(
    folder: Path | str, *, column: str = "text", on_error: Literal["stop", "skip"] = "stop", verify: bool = False
) -> Shards:
    """Opens a folder of ``train-*.parquet`` and ``val-*.parquet``.

    A damaged or empty shard raises ValueError with its name; with on_error="skip" it is left out and listed in
    ``problems``. ``verify`` also compares every file with the sha256 of the manifest, where there is one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; prepare shards there first (nutshell data)")
    if verify and (folder / MANIFEST).exists():
        for name, entry in read_manifest(folder)["files"].items():
            if not (folder / name).exists():
                raise ValueError(f"shard {folder / name} of the manifest is missing; prepare the data again")
            if sha256(folder / name) != entry["sha256"]:
                raise ValueError(f"shard {folder / name} differs from its sha256 in the manifest: it is damaged")
    shards = Shards(folder, column, on_error)
    if shards.blocks("train") == 0:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"no readable train-*.parquet in {folder} (found: {found}); prepare shards with nutshell data")
    return shards


def _row_groups(file: Path, column: str) -> int:
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            rows, groups, schema = parquet.metadata.num_rows, parquet.num_row_groups, parquet.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"shard {file} cannot be read as Parquet ({error}): it is damaged or incomplete") from error
    check_text_column(file, schema, _column(file, schema, column))
    if rows == 0:
        raise ValueError(f"shard {file} is empty: it has no rows; delete it or prepare the data again")
    return groups


def _column(file: Path, schema: pyarrow.Schema, column: str) -> str:
    """The shard's column of text, under another usual name where there is none called "text"."""
    found = find_column(schema.names, "" if column == "text" else column)
    if found is None:
        raise ValueError(f"shard {file}: no column {column!r}; found {', '.join(schema.names)}")
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `write_shards` wrote; ValueError where it is damaged."""
    try:
        return json.loads((folder / MANIFEST).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is not valid JSON ({error}); delete {folder} and prepare again") from None
