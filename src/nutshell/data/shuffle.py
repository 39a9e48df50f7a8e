"""Shuffle, deduplicate and split text that is larger than memory, by one idea: sort the documents by a hash of their text.

The hash is salted with the seed, so sorting by it is a full shuffle, which does not depend on the files or their order. Equal
documents end up side by side, where all but one are dropped, and the first documents become the validation part.

Pass 1 (`scatter`) reads each input once and writes its documents to part files, in buckets by the first bits of the hash.
Pass 2 (`gather`) takes one bucket from all parts, sorts it and writes it as shards. Several processes work on the inputs (a large
file, or some small ones), then several threads on the buckets. Each finished input or bucket leaves a record, so an interrupted
shuffle resumes where it stopped. Memory holds one part a process, then one bucket a thread.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from nutshell.data.find import Notes
from nutshell.data.text import read_file
from nutshell.files import fsync, sha256, write_json
from nutshell.text_files import COMPRESSED

BUCKET_BYTES = 128 << 20
INPUT_BYTES = 64 << 20
"""Small files are taken together, up to this size, as one input."""
PART_CHARACTERS = 32_000_000
"""Of a part file: a process of pass 1 collects this many while it writes as many."""
PARALLEL_BYTES = 64 << 20
"""Less input than this is read by one process, since others take seconds to start."""
GATHER_THREADS = 16
"""At most, in pass 2: each takes about 420 MB, whatever the number of cores."""
UNPACKED = 5
"""Text is about this many times the size of its compressed file."""
MOST_VAL_CHARACTERS = 20_000_000
LEAST_VAL_CHARACTERS = 20_000
"""Bounds of the validation part; but it is never more than a tenth of the text."""
SHORT_TEXT = 200  # characters; a document this short is not cut
SPLITS = ("train", "val")
SCHEMA = pyarrow.schema([pyarrow.field("hash", pyarrow.uint64()), pyarrow.field("text", pyarrow.large_string(), nullable=False)])
Documents = Iterable[str]
Reader = Callable[[Path, Notes], Documents]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Settings of the shards. An interrupted shuffle resumes only with the same ones."""

    seed: int = 0
    val_fraction: float = 0.01
    """Share of the characters held out for validation."""
    rows_per_group: int = 256
    """Documents in a row group, the block that is read at once."""
    shard_characters: int = 32_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction is {self.val_fraction}; accepted: 0 to 0.5")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}; accepted: a whole number of 64 bits")
        if self.rows_per_group < 1 or self.shard_characters < 1:
            raise ValueError(
                f"rows_per_group is {self.rows_per_group}, shard_characters is {self.shard_characters}; accepted: at least 1"
            )


def count_buckets(files: Sequence[Path]) -> int:
    """Number of buckets, so that each holds about `BUCKET_BYTES` of the text of these files."""
    packed = {*COMPRESSED, ".parquet"}
    size = sum(file.stat().st_size * (UNPACKED if file.suffix.lower() in packed else 1) for file in files)
    return 1 + size // BUCKET_BYTES


def shuffle_files(
    train: Sequence[Path],
    val: Sequence[Path],
    folder: Path,
    layout: Layout,
    notes: Notes,
    *,
    read: Reader = read_file,
    alone: bool = False,
) -> dict[str, Any]:
    """Shuffle the documents of files into shards in `folder`; returns what `shards_of` does.

    The counts of the reader are added to `notes`. With `alone` this process reads all files itself, in order, validation first.
    ValueError for files that cannot be read.
    """
    inputs = [(split, files) for split, all_files in (("val", val), ("train", train)) for files in _inputs(all_files)]
    buckets, workers = count_buckets(train), os.cpu_count() or 1
    if sum(file.stat().st_size for _, files in inputs for file in files) < PARALLEL_BYTES:
        workers = 1
    jobs = [(files, folder / "parts", f"{split}-{n:05d}", buckets, layout.seed, read) for n, (split, files) in enumerate(inputs)]
    scattered = list(_each(_scatter_files, jobs, 1 if alone else workers))
    for record in scattered:
        for name, counts in record.pop("notes").items():
            notes[name].update(counts)
    return shards_of(folder, scattered, buckets, layout, workers)


def _inputs(files: Sequence[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.stat().st_size
        if size >= INPUT_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _each(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """The results of jobs in order. Errors of other processes are raised here; MemoryError if one was killed."""
    if workers == 1 or len(jobs) == 1:
        yield from (work(*job) for job in jobs)
        return
    # Started anew: a copy of a process with threads (Arrow's, torch's) may hang.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, *zip(*jobs, strict=True))
        except BrokenProcessPool as error:
            raise MemoryError("a process that read the text was killed, probably for lack of memory. Run it again.") from error
        except ValueError as error:  # raised here, it is an error of the input and not of the pool
            raise ValueError(error) from error


# ---- pass 1 --------------------------------------------------------------------------------------------------------


def _scatter_files(files: list[Path], parts: Path, name: str, buckets: int, seed: int, read: Reader) -> dict[str, Any]:
    notes: Notes = defaultdict(Counter)
    return scatter((text for file in files for text in read(file, notes)), parts, name, buckets, seed, notes)


def scatter(
    documents: Documents, parts: Path, name: str, buckets: int, seed: int, notes: Mapping[str, Counter[str]] | None = None
) -> dict[str, Any]:
    """Write documents to part files, each with one record batch a bucket; returns {name, parts, characters, documents: of each
    bucket, notes: those of the reader}. If that is done already, its record is returned."""
    done = parts / f"{name}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    parts.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"name": name, "parts": 0, "characters": 0, "documents": np.zeros(buckets, np.int64)}
    written: Future[np.ndarray] | None = None
    with ThreadPoolExecutor(1) as writer:  # writes one part while the next one is read
        for digests, texts in _parts(documents, seed):
            if written:
                record["documents"] += written.result()
            written = writer.submit(_write_part, parts / f"{name}-{record['parts']:05d}.arrow", digests, texts, buckets)
            record["parts"] += 1
            record["characters"] += sum(map(len, texts))
            del digests, texts  # their memory is free when they are written
    if written:
        record["documents"] += written.result()
    record |= {"documents": record["documents"].tolist(), "notes": notes or {}}
    write_json(done, record)
    return record


def _parts(documents: Documents, seed: int) -> Iterator[tuple[list[bytes], list[str]]]:
    """Hashes and documents, as many at once as a part file holds."""
    salt = seed.to_bytes(16, "little", signed=True)
    digests: list[bytes] = []
    texts: list[str] = []
    characters = 0
    for document in documents:
        content = document.encode("utf-8", "surrogatepass")
        digests.append(hashlib.blake2b(content, digest_size=8, salt=salt).digest())
        texts.append(document)
        characters += len(document)
        if characters >= PART_CHARACTERS:
            yield digests, texts
            digests, texts, characters = [], [], 0
    if texts:
        yield digests, texts


def _write_part(path: Path, digests: list[bytes], texts: list[str], buckets: int) -> np.ndarray:
    """Write one part file; returns the number of its documents in each bucket."""
    keys = np.frombuffer(b"".join(digests), dtype="<u8")
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ends = np.searchsorted(bucket_of(keys, buckets), np.arange(buckets), side="right")
    batch = pyarrow.record_batch([pyarrow.array(keys), pyarrow.array(texts, pyarrow.large_string()).take(order)], schema=SCHEMA)
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, SCHEMA, options=options) as part:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            part.write_batch(batch.slice(start, end - start))
    return np.diff(ends, prepend=0)


def bucket_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Hashes (n,) uint64 to buckets (n,): bucket b of B holds the hashes from b/B to (b + 1)/B of their range."""
    return ((hashes >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)


# ---- pass 2 --------------------------------------------------------------------------------------------------------


def shards_of(folder: Path, scattered: list[dict[str, Any]], buckets: int, layout: Layout, workers: int) -> dict[str, Any]:
    """Turn the parts into shards, numbered in the order of the buckets. Returns {files: {name: facts}, documents and characters
    by split, duplicates_dropped}. ValueError if there is no document."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for record in scattered:
        names[record["name"].split("-")[0]] += [f"{record['name']}-{n:05d}.arrow" for n in range(record["parts"])]
    characters = sum(record["characters"] for record in scattered)
    if not names["train"]:
        raise ValueError("no document to write: the input is empty")
    wanted = int(layout.val_fraction * characters)
    wanted = min(max(1, wanted, min(LEAST_VAL_CHARACTERS, characters // 10)), MOST_VAL_CHARACTERS)
    first = next(b for b in range(buckets) if any(record["documents"][b] for record in scattered))
    jobs = [(folder, names, b, buckets, layout, 0 if names["val"] or b > first else wanted) for b in range(buckets)]
    with ThreadPoolExecutor(min(workers, GATHER_THREADS)) as pool:  # Arrow does the work without the GIL
        found = list(pool.map(gather, *zip(*jobs, strict=True)))
    total: dict[str, Any] = {"duplicates_dropped": sum(record["dropped"] for record in found), "files": {}}
    for split in SPLITS:
        shards = [(name, facts) for record in found for name, facts in record["files"].items() if name.startswith(split)]
        for number, (name, facts) in enumerate(shards):
            final = f"{split}-{number:05d}.parquet"
            if (folder / name).exists():  # else it was renamed before an interruption
                os.replace(folder / name, folder / final)
            total["files"][final] = facts
        for kind in ("documents", "characters"):
            total.setdefault(kind, {})[split] = sum(facts[kind] for _, facts in shards)
    if not total["documents"]["train"]:
        raise ValueError("every document to train on is one of those held out for validation as well; give other text")
    return total


def gather(folder: Path, names: dict[str, list[str]], bucket: int, buckets: int, layout: Layout, wanted: int) -> dict[str, Any]:
    """Sort one bucket of all parts and write its shards; returns {files, dropped}. `wanted` characters become validation."""
    done = folder / "parts" / f"bucket-{bucket:05d}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    held_out, dropped = _sorted(folder, names["val"], bucket)
    train, more = _sorted(folder, names["train"], bucket)
    dropped += more
    if len(held_out):
        fresh = ~np.isin(train["hash"].to_numpy(), held_out["hash"].to_numpy())
        dropped += len(train) - int(fresh.sum())
        train = train.filter(pyarrow.array(fresh))
    texts = {"val": held_out["text"], "train": train["text"]}
    if wanted:
        texts = divide(texts["train"], wanted, all_there_is=buckets == 1)
    files = {}
    for split in SPLITS:
        ends = np.cumsum(pyarrow.compute.utf8_length(texts[split]).to_numpy()) if len(texts[split]) else np.zeros(0)
        shard_of = (ends - 1) // layout.shard_characters
        for number in np.unique(shard_of):
            first, end = np.searchsorted(shard_of, number), np.searchsorted(shard_of, number, side="right")
            path = folder / f"{split}-bucket-{bucket:05d}-{int(number):05d}.parquet"
            files[path.name] = _write_shard(path, texts[split].slice(first, end - first), layout.rows_per_group)
    record = {"files": files, "dropped": dropped}
    write_json(done, record)
    return record


def _sorted(folder: Path, names: list[str], bucket: int) -> tuple[pyarrow.Table, int]:
    """The documents of a bucket in the order of their hashes, without duplicates, and the number of duplicates."""
    batches = []
    for name in names:
        with pyarrow.OSFile(str(folder / "parts" / name), "rb") as file, pyarrow.ipc.open_file(file) as part:
            batches.append(part.get_batch(bucket))
    table = pyarrow.Table.from_batches(batches, SCHEMA)
    texts, order = table["text"], np.argsort(table["hash"].to_numpy(), kind="stable")
    hashes = table["hash"].to_numpy()[order]
    kept = np.ones(len(hashes), dtype=bool)
    again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    kept[again] = pyarrow.compute.not_equal(texts.take(order[again]), texts.take(order[again - 1])).to_numpy()
    for place in again[kept[again]]:  # different documents with equal hashes of 64 bits: hardly ever
        first = np.searchsorted(hashes, hashes[place])
        kept[place] = texts[order[place]].as_py() not in texts.take(order[first:place]).to_pylist()
    return table.take(order[kept]), int((~kept).sum())


def divide(texts: pyarrow.ChunkedArray, wanted: int, *, all_there_is: bool = True) -> dict[str, pyarrow.ChunkedArray]:
    """Take the first documents, about `wanted` characters, as the validation part. The last one is cut if it is long.

    If the texts are `all_there_is`, neither part stays empty; ValueError for a single document that is too short for that.
    """
    lengths = pyarrow.compute.utf8_length(texts).to_numpy()
    count = int(np.searchsorted(np.cumsum(lengths), wanted, side="right"))
    missing = wanted - int(lengths[:count].sum())
    val, rest = texts.slice(0, count).to_pylist(), texts.slice(count)
    if len(rest) and (not val or missing > SHORT_TEXT):
        text = rest[0].as_py()
        if (len(rest) > 1 or not all_there_is) and len(text) <= max(2 * missing, SHORT_TEXT):
            val, rest = [*val, text], rest.slice(1)
        else:
            kept, remainder = _cut(text, max(1, missing))
            val, rest = [*val, kept], pyarrow.chunked_array([[remainder], *rest.slice(1).chunks], pyarrow.large_string())
    if not len(rest) and all_there_is:
        val, rest = val[:-1], pyarrow.chunked_array([val[-1:]], pyarrow.large_string())
    return {"val": pyarrow.chunked_array([val], pyarrow.large_string()), "train": rest}


def _cut(text: str, characters: int) -> tuple[str, str]:
    """The first `characters` of a text, about, and the rest: cut at a space nearby, or anywhere (Chinese, DNA)."""
    if len(text) < 10:
        raise ValueError(f"the only document has {len(text)} characters: too little for a train and a val part")
    space = text.rfind(" ", characters // 2, characters + 1)
    cut = space if space > 0 and text[:space].strip() and text[space:].strip() else characters
    return text[:cut].strip(), text[cut:].strip()


def _write_shard(path: Path, texts: pyarrow.ChunkedArray, rows_per_group: int) -> dict[str, Any]:
    pyarrow.parquet.write_table(
        pyarrow.table([texts], schema=pyarrow.schema([SCHEMA.field("text")])),
        path,
        row_group_size=rows_per_group,
        compression="zstd",
        use_dictionary=False,  # every text differs
        write_statistics=False,
        write_page_checksum=True,  # lets a reader notice a flipped bit, which would pass for text otherwise
    )
    fsync(path)
    characters = pyarrow.compute.sum(pyarrow.compute.utf8_length(texts)).as_py()
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "documents": len(texts), "characters": characters}
