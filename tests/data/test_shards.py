import json
import os

import pyarrow.parquet
import pytest

from nutshell.data.shards import is_shard_folder, open_shards, prepare_shards, write_shards

DOCUMENTS = [f"document {number} " + "text " * (number % 7) for number in range(300)]


def read_all(folder, split):
    shards = open_shards(folder)
    return [text for block in range(shards.blocks(split)) for text in shards.read(split, block)]


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.3}, {"shard_characters": 500}])
def test_every_document_is_on_one_side_once(tmp_path, options):
    folder = write_shards(DOCUMENTS + DOCUMENTS[:50], tmp_path / "shards", rows_per_group=32, **options)
    train, val = read_all(folder, "train"), read_all(folder, "val")
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert val
    assert train != sorted(train)  # shuffled
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["documents"] == {"train": len(train), "val": len(val)}
    assert manifest["duplicates_dropped"] == 50
    assert sum(entry["characters"] for entry in manifest["files"].values()) == sum(map(len, DOCUMENTS))
    assert len(manifest["files"]) == len(list(folder.glob("*.parquet"))) >= 2


def test_the_split_does_not_depend_on_order_and_shards_repeat_exactly(tmp_path):
    first = write_shards(DOCUMENTS, tmp_path / "1", val_fraction=0.2)
    again = write_shards(DOCUMENTS, tmp_path / "2", val_fraction=0.2)
    backwards = write_shards(DOCUMENTS[::-1], tmp_path / "3", val_fraction=0.2)
    other = write_shards(DOCUMENTS, tmp_path / "4", val_fraction=0.2, seed=1)
    assert (first / "manifest.json").read_text() == (again / "manifest.json").read_text()
    assert sorted(read_all(first, "val")) == sorted(read_all(backwards, "val")) != sorted(read_all(other, "val"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_tiny_single_file_gives_disjoint_train_and_val(tmp_path, count):
    # nanochat 620
    path = tmp_path / "one.txt"
    path.write_text("\n\n".join(f"{number}: " + "some words here " * 200 for number in range(count)), "utf-8")
    folder = prepare_shards(path, tmp_path / "shards", val_fraction=0.5)
    train, val = set(read_all(folder, "train")), set(read_all(folder, "val"))
    assert train
    assert val
    assert not train & val


def test_a_shard_folder_is_used_as_it_is_and_written_shards_again(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    folder = prepare_shards(path, tmp_path / "shards", seed=3)
    assert is_shard_folder(folder)
    assert prepare_shards(folder, tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare_shards(path, tmp_path / "shards", seed=3) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="other data or settings"):
        prepare_shards(path, tmp_path / "shards", seed=4)


def test_a_manifest_of_somebody_else_is_no_damage(tmp_path):
    """Its reader was told to delete the folder of his own texts."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.json").write_text("[1, 2]")
    (tmp_path / "in" / "a.txt").write_text("some words of text. " * 500)
    assert not is_shard_folder(tmp_path / "in")
    assert is_shard_folder(prepare_shards(tmp_path / "in", tmp_path / "shards"))


def test_the_folder_that_it_runs_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the folder that this runs in"):
        write_shards(DOCUMENTS, ".")


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"caf\ufffd is not UTF-8"):
        write_shards(DOCUMENTS, tmp_path / os.fsdecode(b"caf\xe9"))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_a_failure(tmp_path):
    def broken():
        yield from DOCUMENTS
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError):
        write_shards(broken(), tmp_path / "shards", shard_characters=100)
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_writer_are_cleared(tmp_path):
    (tmp_path / ".shards.partial").mkdir()
    (tmp_path / ".shards.partial" / "train-00007.parquet").write_bytes(b"half")
    folder = write_shards(DOCUMENTS, tmp_path / "shards")
    assert {path.name for path in tmp_path.iterdir()} == {"shards"}
    assert not (folder / "train-00007.parquet").exists()


@pytest.mark.parametrize(
    ("documents", "message"), [([], "no document to write"), (["short"], "the only document has 5 characters")]
)
def test_too_little_text(tmp_path, documents, message):
    with pytest.raises(ValueError, match=message):
        write_shards(documents, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write_shards(DOCUMENTS, tmp_path)


@pytest.fixture
def three_shards(tmp_path):
    return write_shards(DOCUMENTS, tmp_path / "shards", shard_characters=2500, rows_per_group=50)


def test_damaged_and_empty_shards_are_named_or_skipped_with_a_note(three_shards):
    good = open_shards(three_shards).blocks("train")
    second = three_shards / "train-00001.parquet"
    second.write_bytes(second.read_bytes()[:-20])
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, three_shards / "train-00002.parquet")
    with pytest.raises(ValueError, match=r"train-00001\.parquet cannot be read as Parquet"):
        open_shards(three_shards)
    skipping = open_shards(three_shards, on_error="skip")
    assert 0 < skipping.blocks("train") < good
    assert ["train-00001" in skipping.problems[0], "train-00002" in skipping.problems[1]] == [True, True]
    second.unlink()
    with pytest.raises(ValueError, match=r"train-00002\.parquet is empty"):
        open_shards(three_shards)


def test_a_flipped_bit_is_noticed_while_reading(three_shards):
    path = three_shards / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[200] ^= 4  # inside the first row group's pages, so that opening alone finds nothing
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000\.parquet, row group 0"):
        open_shards(three_shards).read("train", 0)
    skipping = open_shards(three_shards, on_error="skip")
    assert skipping.read("train", 0) == []
    assert skipping.read("train", 0) == []
    assert len(skipping.problems) == 1


def test_opening_what_is_not_a_shard_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        open_shards(tmp_path / "nope")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no readable train-\*\.parquet .*found: a\.txt"):
        open_shards(tmp_path)
    assert not is_shard_folder(tmp_path)


def test_fingerprint_follows_the_data(three_shards):
    before = open_shards(three_shards).fingerprint("train")
    assert before == open_shards(three_shards).fingerprint("train")
    (three_shards / "train-00001.parquet").unlink()
    assert open_shards(three_shards).fingerprint("train") != before


@pytest.mark.parametrize("text", ["天地玄黄宇宙洪荒。" * 400, "acgt" * 500])
def test_f37_one_document_without_a_space_has_both_parts(tmp_path, text):
    """F37 (12): "too little" at any size."""
    write_shards([text], tmp_path / "s")
    train, val = ("".join(read_all(tmp_path / "s", split)) for split in ("train", "val"))
    assert sorted(train + val) == sorted(text)
    assert 0 < len(val) <= len(text) // 10


def test_f37_the_val_part_is_a_share_of_the_characters_not_a_whole_book(tmp_path):
    """F37 (30): with a few long rows a whole book was held out, and little was left to train on."""
    books = [f"book {n} " + "word " * 40_000 for n in range(4)]
    write_shards(books, tmp_path / "s", seed=3)
    val = sum(len(text) for text in read_all(tmp_path / "s", "val"))
    assert 0 < val <= 0.05 * sum(map(len, books))
