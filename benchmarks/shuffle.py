"""Text larger than memory: `nutshell data import` beside Hugging Face datasets doing the same job, in MB/s and peak memory.

    python benchmarks/shuffle.py --gigabytes 10 --work FOLDER [--datasets PYTHON] [--kill]

The corpus is made here, the same one for the same size: JSON lines of documents of 0.2 to 4 KB, every fifth one a copy of an
earlier one. The job: read all, drop exact duplicates, shuffle, write shards. PYTHON is an interpreter that has `datasets`.
--kill ends ours with SIGKILL in the middle, starts it again, and compares its shards with those of an undisturbed run. Memory is
that of the process and its children without pages of files (/proc, so Linux alone), sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nutshell.report.provenance import processor

FILE_BYTES = 256 << 20
COPIES = 0.2
QUIET = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
DATASETS = """
import sys
from hashlib import blake2b
from multiprocessing import Pool
from pathlib import Path
import numpy as np
from datasets import load_dataset

files, out, cores = sorted(map(str, Path(sys.argv[1]).glob("*.jsonl"))), Path(sys.argv[2]), int(sys.argv[3])

def digest(batch):
    hashes = [blake2b(text.encode(), digest_size=8).digest() for text in batch["text"]]
    return {"hash": [int.from_bytes(one, "little", signed=True) for one in hashes]}

def write(number):
    chosen.shard(shards, number, contiguous=True).to_parquet(out / f"train-{number:05d}.parquet")

data = load_dataset("json", data_files=files, split="train", cache_dir=str(out / "cache"), num_proc=cores)
hashes = data.map(digest, batched=True, num_proc=cores, remove_columns=data.column_names).with_format("numpy")["hash"][:]
places = np.random.default_rng(0).permutation(np.unique(hashes, return_index=True)[1])
chosen = data.select(places)
shards = 1 + sum(Path(f).stat().st_size for f in files) // 32_000_000
with Pool(cores) as pool:
    pool.map(write, range(shards))
print(len(hashes), len(places))
"""


def make_corpus(folder: Path, size: int) -> int:
    """About `size` bytes of files, in sentences of made-up words by a Zipf-like law; how many documents."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, range(22, 0, -1), k=draw.randint(2, 9))) for _ in range(50_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    pool = draw.choices(words, weights, k=1_000_000)
    sentences = [" ".join(pool[start : start + draw.randint(5, 25)]) + ". " for start in range(0, len(pool) - 25, 20)]

    def document(number: int) -> str:
        one = random.Random(number)
        return f"{number} " + "".join(one.choices(sentences, k=one.randint(2, 40)))

    folder.mkdir(parents=True, exist_ok=True)
    documents = 0
    for file in range(max(1, size // FILE_BYTES)):
        with (folder / f"{file:05d}.jsonl").open("w", encoding="utf-8") as out:
            while out.tell() < min(size, FILE_BYTES):
                copied = draw.randrange(documents) if documents and draw.random() < COPIES else documents
                out.write(json.dumps({"text": document(copied)}) + "\n")
                documents += 1
    return documents


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = " ".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()).split()
    except OSError:  # it has ended
        return []
    return [pid] + [one for child in children for one in family(int(child))]


def memory(pid: int) -> int:
    """Bytes; what processes share is counted once."""
    total = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def run(command: list[str], kill: Callable[[], bool] = lambda: False) -> tuple[float, int]:
    """Seconds and peak bytes of a command; all its processes are killed as soon as `kill` says so."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, env=QUIET) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            if kill():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return time.perf_counter() - start, peak
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {process.returncode}")
    return time.perf_counter() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the corpus (kept) and the shards: 2.5 times as large"
    )
    parser.add_argument("--datasets", help="Python that has Hugging Face datasets")
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    corpus, shards, cores = options.work / f"corpus-{options.gigabytes:g}", options.work / "shards", os.cpu_count() or 1
    if not corpus.exists():
        print(f"made {make_corpus(corpus, int(options.gigabytes * 1e9)):,} documents")
    size = sum(file.stat().st_size for file in corpus.iterdir())
    print(f"{size / 1e9:.2f} GB of JSON lines, {cores} cores of {processor()}, load {os.getloadavg()[0]:.1f}")

    def say(name: str, seconds: float, peak: int, more: str = "") -> None:
        print(f"  {name:24} {size / 1e6 / seconds:6.1f} MB/s in {seconds:.0f} s, peak {peak / 1e9:.2f} GB{more}", flush=True)

    ours = [sys.executable, "-m", "nutshell", "data", "import", str(corpus), "--out", str(shards)]
    shutil.rmtree(shards, ignore_errors=True)
    seconds, peak = run(ours)
    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    counts = f"; {sum(manifest['documents'].values()):,} documents, {manifest['duplicates_dropped']:,} copies dropped"
    say("nutshell data import", seconds, peak, counts)
    shutil.rmtree(shards)
    if options.kill:
        parts, files = shards.with_name(".shards.partial") / "parts", len([*corpus.iterdir()])
        first, _ = run(ours, kill=lambda: len([*parts.glob("train-*.json")]) > files // 2)
        again, peak = run(ours)
        same = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))["files"] == manifest["files"]
        say("after kill -9", first + again, peak, f"; killed after {first:.0f} s, {again:.0f} s to go on; same shards: {same}")
        shutil.rmtree(shards)
    if options.datasets:
        shards.mkdir()
        seconds, peak = run([options.datasets, "-c", DATASETS, str(corpus), str(shards), str(cores)])
        say("datasets", seconds, peak)
        shutil.rmtree(shards)


if __name__ == "__main__":
    main()
