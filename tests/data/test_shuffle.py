"""The shuffle of text larger than memory loses nothing, does not depend on the order of the input, and goes on after kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nutshell.cli.main import exit_code
from nutshell.data import shuffle
from nutshell.data.shards import build_shards, open_shards, prepare_shards
from nutshell.data.shuffle import Layout, scatter, shuffle_files

texts = st.text(alphabet="ab 天\n", min_size=1, max_size=12).filter(lambda text: not text.isspace())


def write(folder, documents, files=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        rows = [json.dumps({"text": text}) + "\n" for text in documents[number::files]]
        (folder / f"{number}.jsonl").write_text("".join(rows))
    return sorted(folder.glob("*.jsonl"))


def shuffle_in(buckets, train, val, folder, layout):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "count_buckets", lambda files: buckets)
        return shuffle_files(train, val, folder, layout, defaultdict(Counter))


def read(folder, split):
    shards = open_shards(folder)
    return [text for block in range(shards.blocks(split)) for text in shards.read(split, block)]


@settings(max_examples=10)
@given(
    documents=st.lists(texts, min_size=12, max_size=60), files=st.integers(1, 3), buckets=st.integers(1, 5), order=st.randoms()
)
def test_every_document_is_written_once_in_an_order_of_its_own(tmp_path_factory, documents, files, buckets, order):
    base = tmp_path_factory.mktemp("shuffle")
    assume(len(set(documents)) > 4)
    layout = Layout(val_fraction=0.2, rows_per_group=4, shard_characters=40)
    inputs = write(base / "in", documents, files)
    facts = shuffle_in(buckets, inputs, [], base / "out", layout)
    train, val = read(base / "out", "train"), read(base / "out", "val")
    assert sum(map(len, train + val)) <= sum(map(len, set(documents)))  # spaces at the cut are lost
    assert len(set(documents) - set(train + val)) <= 1  # the document that is cut
    assert facts["duplicates_dropped"] == len(documents) - len(set(documents))
    assert facts["documents"] == {"train": len(train), "val": len(val)}
    assert val
    shuffled = list(documents)
    order.shuffle(shuffled)
    again = shuffle_in(buckets, write(base / "in2", shuffled, 2), [], base / "out2", layout)
    assert (read(base / "out2", "train"), read(base / "out2", "val")) == (train, val)
    assert again["documents"] == facts["documents"]


def test_it_is_a_shuffle_of_everything(tmp_path):
    """F3: a folder of English before one of Chinese, each larger than a shard."""
    layout = Layout(shard_characters=2000, rows_per_group=40)
    inputs = write(tmp_path / "in", [f"english {n:04d}" for n in range(600)] + [f"汉语 {n:04d}" for n in range(600)])
    shuffle_in(3, inputs, [], tmp_path / "out", layout)
    shards = open_shards(tmp_path / "out")
    for block in range(shards.blocks("train") - 1):
        texts = shards.read("train", block)
        assert len(texts) < 40 or 0 < sum(text.startswith("english") for text in texts) < len(texts)


def test_named_validation_files_are_all_of_it_and_never_trained_on(tmp_path):
    train = write(tmp_path / "train", [f"document {n}" for n in range(100)])
    val = write(tmp_path / "val", ["document 3", "document 50", "another", "another"])
    facts = shuffle_in(4, train, val, tmp_path / "out", Layout())
    assert sorted(read(tmp_path / "out", "val")) == ["another", "document 3", "document 50"]
    assert facts["documents"] == {"train": 98, "val": 3}
    assert facts["duplicates_dropped"] == 3


def test_several_processes_do_the_same_and_name_what_is_wrong(tmp_path, monkeypatch):
    write(tmp_path / "in", [f"document {n} of this text" for n in range(3000)], files=3)  # one input
    alone = prepare_shards(tmp_path / "in", tmp_path / "alone")
    monkeypatch.setattr(shuffle, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(shuffle, "INPUT_BYTES", 0)
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 20_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    several = prepare_shards(tmp_path / "in", tmp_path / "several")
    assert (read(alone, "train"), read(alone, "val")) == (read(several, "train"), read(several, "val"))
    (tmp_path / "in" / "2.jsonl").write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(ValueError, match=r"2\.jsonl, line 2: not JSON") as error:
        prepare_shards(tmp_path / "in", tmp_path / "bad")
    assert exit_code(error.value) == 2
    assert not list(tmp_path.glob("*bad*"))


def killed(file, notes):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_what_is_done_stays(tmp_path, monkeypatch):
    """As the kernel does where memory ends: it was a traceback, and hours of reading were thrown away."""
    files = write(tmp_path / "in", [f"document {n}" for n in range(20)], files=2)
    monkeypatch.setattr(shuffle, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(shuffle, "INPUT_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def shuffled(beside):
        return shuffle_files(files, [], beside, Layout(), defaultdict(Counter), read=killed)

    with pytest.raises(MemoryError, match="was killed, probably for lack of memory"):
        build_shards(shuffled, tmp_path / "out", "source", Layout())
    assert (tmp_path / ".out.partial" / "parts" / "source.json").exists()


SCRIPT = """
import sys, time
from nutshell.data import shards, shuffle
real, shuffle.INPUT_BYTES = shuffle.scatter, 0
def slow(documents, *arguments):
    def late():
        time.sleep(0.3)
        yield from documents
    return real(late(), *arguments)
shuffle.scatter = slow
shards.prepare_shards(sys.argv[1], sys.argv[2])
"""


def test_it_goes_on_after_kill_9(tmp_path):
    write(tmp_path / "in", [f"document {n} of this text" for n in range(2000)], files=6)
    whole = prepare_shards(tmp_path / "in", tmp_path / "whole")
    parts = tmp_path / ".killed.partial" / "parts"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while not (finished := list(parts.glob("train-*.json"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(finished) < 6
    seen = []
    real = shuffle.scatter

    def watched(documents, parts, name, *arguments):
        def noticed():
            seen.append(name)
            yield from documents

        return real(noticed(), parts, name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "INPUT_BYTES", 0)
        patch.setattr(shuffle, "scatter", watched)
        killed = prepare_shards(tmp_path / "in", tmp_path / "killed")
    assert 0 < len(seen) < 6 + 1 - len(finished)
    assert (killed / "manifest.json").read_text() == (whole / "manifest.json").read_text()
    assert not parts.exists()


def test_equal_hashes_of_different_documents_are_no_duplicates(tmp_path, monkeypatch):
    class Constant:
        def __init__(self, *arguments, **options):
            pass

        def digest(self):
            return bytes(8)

    monkeypatch.setattr(shuffle.hashlib, "blake2b", Constant)
    scatter(["one document", "two documents", "one document", "two documents"], tmp_path / "parts", "train-00000", 1, 0)
    table, dropped = shuffle._sorted(tmp_path, ["train-00000-00000.arrow"], 0)
    assert (table["text"].to_pylist(), dropped) == (["one document", "two documents"], 2)


@pytest.mark.parametrize("changes", [{"val_fraction": 0.9}, {"rows_per_group": 0}, {"shard_characters": 0}, {"seed": 1 << 64}])
def test_impossible_layouts_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is {next(iter(changes.values()))}"):
        Layout(**changes)


@pytest.mark.parametrize("characters", [1, shuffle.PART_CHARACTERS])
def test_a_part_that_cannot_be_written_ends_the_pass_without_a_record(tmp_path, monkeypatch, characters):
    """Its thread's error is that of the pass, be it the first part of many or the last."""
    monkeypatch.setattr(shuffle, "PART_CHARACTERS", characters)
    (tmp_path / "train-00000-00000.arrow").mkdir()
    with pytest.raises(OSError, match=r"train-00000-00000\.arrow"):
        scatter(["one document", "two documents", "three of them"], tmp_path, "train-00000", 1, 0)
    assert not (tmp_path / "train-00000.json").exists()


@settings(max_examples=30)
@given(documents=st.lists(texts, min_size=1, max_size=20), size=st.integers(1, 30), hashed=st.integers(1, 8))
def test_what_remains_is_each_document_once_whatever_the_parts_and_collisions(tmp_path_factory, documents, size, hashed):
    """Hashes of few bits, so that different documents share one: the first of equal ones stays, in the order of the hashes."""
    folder = tmp_path_factory.mktemp("parts")

    class Few:
        def __init__(self, content, **options):
            self.hash = sum(content) % hashed

        def digest(self):
            return self.hash.to_bytes(8, "little")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "PART_CHARACTERS", size)
        patch.setattr(shuffle.hashlib, "blake2b", Few)
        record = scatter(documents, folder / "parts", "train-00000", 1, 0)
    names = [f"train-00000-{number:05d}.arrow" for number in range(record["parts"])]
    table, dropped = shuffle._sorted(folder, names, 0)
    expected = sorted(dict.fromkeys(documents), key=lambda text: sum(text.encode()) % hashed)
    assert (table["text"].to_pylist(), dropped) == (expected, len(documents) - len(expected))
    assert (record["characters"], sum(record["documents"])) == (sum(map(len, documents)), len(documents))
