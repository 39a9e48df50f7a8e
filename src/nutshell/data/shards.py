"""Parquet shards: what pretraining reads. ``train-00000.parquet ..., val-00000.parquet``, one column ``text``.

Which side a document falls on depends on its own hash and the seed only, so train and val are disjoint by construction,
duplicates or not, and another order of the files changes nothing. A row group is the unit of reading (a block).
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from nutshell.data.text import as_text, find_text, open_parquet, text_column
from nutshell.files import fsync, sha256, shown, write_json

MANIFEST = "manifest.json"
SPLITS = ("train", "val")
LEAST_VAL_CHARACTERS = 20_000
"""Of the val part of a small text, but never more than a tenth of the document that it is cut from."""
SHORT_TEXT = 200  # characters; so little is not cut


def prepare_shards(
    paths: Path | str | list[Path | str], folder: Path | str, *, note: Callable[[str], object] = lambda line: None, **options: Any
) -> Path:
    """Turn the user's files into shards under ``folder`` and return the folder to train from.

    A folder that holds shards already is returned as it is. Shards that an earlier call wrote from the same files with the
    same options are used again. Files that `find_text` takes for validation are the val part. ``note`` hears one line about
    what was read, left out and dropped; ``options`` are those of `write_shards`.
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
    documents: Iterable[str], folder: Path | str, *, val_fraction: float = 0.01, rows_per_group: int = 256,
    shard_characters: int = 32_000_000, seed: int = 0, source: Any = None, held_out: Iterable[str] | None = None,
) -> Path:  # fmt: skip
    """Write documents as shuffled train and val shards with a ``manifest.json``; returns the folder.

    Exact duplicates of an earlier document are dropped. The val part is ``held_out`` where that is given, and what equals one
    of it is not trained on; else about ``val_fraction`` of the documents. Both parts get at least one document. A shard holds
    about ``shard_characters``, and documents are shuffled within it. The folder appears by one rename, complete.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; delete it or choose another folder for the shards")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        train, val = (_Writer(partial, split, rows_per_group, shard_characters, seed) for split in SPLITS)
        distinct = _Distinct(seed)
        if held_out is None:
            _divide(distinct.of(documents), train, val, val_fraction)
        else:
            for side, texts in ((val, held_out), (train, documents)):
                for _, document in distinct.of(texts):
                    side.add(document)
            if not train.documents:
                raise ValueError("every document to train on is one of those held out for validation as well; give other text")
        train.flush()
        val.flush()
        manifest = {
            "format": "nutshell-shards-1",
            "seed": seed,
            "duplicates_dropped": distinct.dropped,
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


class _Distinct:
    """Documents that were not seen before, each with a hash of 64 bits that decides its side."""

    def __init__(self, seed: int):
        self.salt = seed.to_bytes(16, "little", signed=True)
        self.seen: set[bytes] = set()
        self.dropped = 0

    def of(self, documents: Iterable[str]) -> Iterator[tuple[int, str]]:
        for document in documents:
            digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=16, salt=self.salt).digest()
            if digest in self.seen:
                self.dropped += 1
                continue
            self.seen.add(digest)
            yield int.from_bytes(digest[:8], "little"), document


def _divide(documents: Iterator[tuple[int, str]], train: _Writer, val: _Writer, fraction: float) -> None:
    """Send each document to the side that its hash says. The one of the smallest hash waits until the end: it fills the val
    part up to its share of the characters, cut where it is long, and so makes sure that there is one."""
    held = next(documents, None)
    if held is None:
        raise ValueError("no document to write: the input is empty")
    for found in documents:
        held, (value, document) = min(held, found), max(held, found)
        (val if value < int(fraction * 2**64) else train).add(document)
    text = held[1]
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


def _cut(text: str, characters: int) -> tuple[str, str]:
    """About the first `characters` of a text and the rest: cut at a space near there, or anywhere (Chinese, DNA)."""
    if len(text) < 10:
        raise ValueError(f"the only document has {len(text)} characters: too little for a train and a val part")
    space = text.rfind(" ", characters // 2, characters + 1)
    cut = space if space > 0 and text[:space].strip() and text[space:].strip() else characters
    return text[:cut].strip(), text[cut:].strip()


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
        fsync(path)
        self.files[path.name] = {
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "documents": len(self.buffer),
            "characters": self.buffered_characters,
        }
        self.buffer, self.buffered_characters = [], 0


class Shards:
    """A folder of shards, addressed by split and block (a row group). Made by `open_shards`."""

    def __init__(self, folder: Path, on_error: Literal["stop", "skip"]):
        self.folder, self.on_error = folder, on_error
        self.problems: list[str] = []
        """What was skipped and why, with on_error="skip"."""
        self._bytes: dict[Path, int] = {}
        self._blocks: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            for file in sorted(folder.glob(f"{split}-*.parquet")):
                try:
                    self._blocks[split] += [(file, group) for group in range(_row_groups(file))]
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
        """Changes when the shards of a split do: their names, sizes and number of row groups, as they were when opened."""
        files = sorted({file for file, _ in self._blocks[split]})
        parts = [[file.name, self._bytes[file]] for file in files]
        return hashlib.sha256(json.dumps(["text", parts, self.blocks(split)]).encode()).hexdigest()[:16]

    def _problem(self, error: ValueError) -> None:
        if self.on_error == "stop":
            raise error
        if str(error) not in self.problems:
            self.problems.append(str(error))


def open_shards(folder: Path | str, *, on_error: Literal["stop", "skip"] = "stop") -> Shards:
    """Open a folder of ``train-*.parquet`` and ``val-*.parquet``.

    A damaged or empty shard raises ValueError with its name; with on_error="skip" it is left out and listed in ``problems``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; prepare shards there first (nutshell data)")
    shards = Shards(folder, on_error)
    if shards.blocks("train") == 0:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"no readable train-*.parquet in {folder} (found: {found}); prepare shards with nutshell data")
    return shards


def _row_groups(file: Path) -> int:
    with open_parquet(file) as parquet:
        text_column(file, parquet.schema_arrow)
        if parquet.metadata.num_rows == 0:
            raise ValueError(f"shard {file} is empty: it has no rows; delete it or prepare the data again")
        return parquet.num_row_groups


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `write_shards` wrote, empty where there is none; ValueError where it is damaged."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete {folder} and prepare again") from None
