"""What is read of a user's folder and what is left out, and what is said about it."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from nutshell import text_files
from nutshell.data.conversations import read_conversations
from nutshell.data.shards import open_shards, prepare_shards
from nutshell.data.text import find_text, read_documents, read_file
from nutshell.files import write_json
from nutshell.text_files import read_blocks
from nutshell.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def rows(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def texts(path, name, count=40):
    return rows(path, *({"text": f"{name} row {number} " + "word " * 30} for number in range(count)))


def names(files):
    return sorted(file.name for file in files)


@pytest.mark.parametrize(
    ("files", "train", "val"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], ["dev.jsonl"]),
        (["data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"], ["train-00000-of-00001.jsonl"],
         ["validation-00000-of-00001.jsonl"]),
        (["train/a.jsonl", "validation/b.jsonl", "test/c.jsonl"], ["a.jsonl"], ["b.jsonl"]),
        (["Train/test_notes.jsonl", "VAL/b.jsonl"], ["test_notes.jsonl"], ["b.jsonl"]),
        (["wiki.train.jsonl", "wiki.valid.jsonl", "wiki.test.jsonl"], ["wiki.train.jsonl"], ["wiki.valid.jsonl"]),
        (["corpus.jsonl", "test.jsonl"], ["corpus.jsonl"], []),
        (["web dev notes.jsonl", "the test.jsonl"], ["the test.jsonl", "web dev notes.jsonl"], []),
        (["test.jsonl"], ["test.jsonl"], []),
        (["latest.jsonl", "contrast.jsonl", "medieval.jsonl"], ["contrast.jsonl", "latest.jsonl", "medieval.jsonl"], []),
    ],
)  # fmt: skip
def test_f36_split_names_of_hub_folders_are_honoured(tmp_path, files, train, val):
    """F36 (8): validation and test files were trained on."""
    for file in files:
        texts(tmp_path / file, file, 2)
    found = find_text(tmp_path)
    assert (names(found.train), names(found.val)) == (train, val)


def test_f36_the_val_part_is_that_of_the_folder_and_disjoint(tmp_path):
    for name in ("train", "dev", "test"):
        texts(tmp_path / "in" / f"{name}.jsonl", name)
    with (tmp_path / "in" / "train.jsonl").open("a") as file:
        file.write((tmp_path / "in" / "dev.jsonl").read_text())
    said = []
    shards = open_shards(prepare_shards(tmp_path / "in", tmp_path / "s", note=said.append))
    read = {s: {t.split()[0] for b in range(shards.blocks(s)) for t in shards.read(s, b)} for s in ("train", "val")}
    assert read == {"train": {"train"}, "val": {"dev"}}
    assert "left out: 1 test; 40 documents to train on, 40 held out, 40 duplicates dropped" in said[0]


def test_f36_what_is_about_the_data_and_other_kinds_are_left_out_and_counted(tmp_path):
    """F36 (8, 34), F38 (25)."""
    texts(tmp_path / "a.jsonl", "a")
    rows(tmp_path / "metadata.jsonl", {"file": "a"})
    rows(tmp_path / "chats.jsonl", CHAT)
    for name in ("README.md", "LICENSE.txt", "requirements-dev.txt", "x.csv", "y.CSV", ".hidden.txt", "._a.txt"):
        (tmp_path / name).write_text("other\0")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "n.txt").write_text("no")
    (tmp_path / "info.json").write_text('{"licence": "mit"}')
    (tmp_path / "UP.TXT").write_text("upper case")
    found = find_text(tmp_path)
    assert names(found.train) == ["UP.TXT", "a.jsonl"]
    for part in ("2 .csv", "1 README.md", "1 requirements-dev.txt", "2 .jsonl with other rows", "1 .json with other rows"):
        assert part in found.summary()
    assert read_conversations(tmp_path) == [CHAT]
    assert find_text(tmp_path / "README.md").train  # named itself


def test_json_files_are_lists_or_lines(tmp_path):
    """F36 (34)."""
    (tmp_path / "list.json").write_text(json.dumps([{"text": "one"}, {"text": None}, {"text": "two"}], indent=1))
    rows(tmp_path / "lines.json", {"text": "three"}, {"text": "four"})
    with gzip.open(tmp_path / "z.json.gz", "wt") as file:
        file.write('[{"content": "five"}]')
    assert list(read_documents(tmp_path)) == ["three", "four", "one", "two", "five"]
    (tmp_path / "only").mkdir()
    with gzip.open(tmp_path / "only" / "text.json.gz", "wt") as file:
        file.write("plain text")
    with pytest.raises(ValueError, match=r"text\.json\.gz: not JSON"):
        list(read_documents(tmp_path / "only"))


def test_a_json_file_of_lines_is_not_read_whole(tmp_path, monkeypatch):
    """Such a file of 10 GB needed twice the memory of its text."""
    rows(tmp_path / "lines.json", {"text": "three"}, {"text": "four"})
    monkeypatch.setattr(text_files, "read_blocks", None)
    assert list(read_documents(tmp_path / "lines.json")) == ["three", "four"]


@pytest.mark.parametrize("codec", ["gz", "bz2", "zst"])
def test_packed_files_and_damaged_ones(tmp_path, codec):
    path = tmp_path / f"a.JSONL.{codec}"
    with pyarrow.output_stream(str(path), compression={"gz": "gzip", "zst": "zstd"}.get(codec, codec)) as file:
        file.write(b'{"text": "packed"}\n' * 3000)
    assert list(read_documents(path)) == ["packed"] * 3000
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"a.JSONL.{codec} cannot be unpacked"):
        list(read_blocks(path))


@pytest.mark.parametrize("out", ["runs/a", "."])
def test_f31_runs_inside_the_data_are_left_out_and_said_once(tmp_path, out):
    """F31 (1): the run's own shards and log counted as text, and the second command was refused."""
    (tmp_path / "a.txt").write_text("some words of text. " * 500)
    before = names(find_text(tmp_path).train)
    prepare_shards(tmp_path, tmp_path / out / "data")
    rows(tmp_path / out / "metrics.jsonl", {"stage": "data", "step": 0})
    (tmp_path / out / "report.md").write_text("report")
    write_json(tmp_path / out / "plan.json", {"recipe": {}})
    found = find_text(tmp_path)
    assert names(found.train) == before == ["a.txt"]
    assert "left out: 1 run folder" in found.summary()
    rows(tmp_path / "chat.jsonl", CHAT)
    assert read_conversations(tmp_path) == [CHAT]
    rows(tmp_path / "new" / "metrics.jsonl").touch()  # a run that has just begun
    assert names(find_text(tmp_path).train) == ["a.txt"]


def test_f33_links_are_followed_and_circles_end(tmp_path):
    """F33 (13)."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "n.txt").write_text("numbers")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "linked").symlink_to("../big")
    (tmp_path / "d" / "twice.txt").symlink_to("../big/n.txt")
    (tmp_path / "big" / "round").symlink_to("../d")
    (tmp_path / "d" / "gone.txt").symlink_to("nowhere")
    found = find_text(tmp_path / "d")
    assert len(found.train) == 1
    assert found.left_out == {"broken link": 1}


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "jsonl", "parquet"])
def test_f33_names_that_are_not_utf8(tmp_path, suffix):
    """F33 (35): a codec message after the work was done."""
    path = tmp_path / "in" / os.fsdecode(b"caf\xe9." + suffix.encode())
    path.parent.mkdir()
    content = (json.dumps({"text": "some words of text. " * 500}) + "\n").encode()
    if suffix == "parquet":
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({"text": ["some words of text. " * 500]}), buffer)
        content = buffer.getvalue().to_pybytes()
    try:
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    said = []
    prepare_shards(tmp_path / "in", tmp_path / "s", note=said.append)
    said[0].encode("utf-8")
    write_json(tmp_path / "plan.json", {"data": str(path)})
    assert json.loads((tmp_path / "plan.json").read_text())["data"] == str(path)
    assert Tokenizer.train([path], 275).vocab_size == 275
    path.write_bytes(b"\xff broken")
    with pytest.raises(ValueError, match="caf\ufffd") as error:
        list(read_documents(path))
    str(error.value).encode("utf-8")


KINDS = {
    "binary": pyarrow.binary(), "large_binary": pyarrow.large_binary(), "large_string": pyarrow.large_string(),
    "view": pyarrow.string_view(), "dictionary": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["text", "content", "raw_content", "Body"])
def test_f38_parquet_columns_of_all_kinds_of_text(tmp_path, kind, column):
    """F38 (16, 47)."""
    array = pyarrow.array([f"row {number} of words" for number in range(40)])
    array = array.cast(KINDS[kind]) if KINDS[kind] else array.dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"id": pyarrow.array(["x"] * 40), column: array}), tmp_path / "a.parquet")
    found = find_text(tmp_path)
    assert list(read_file(found.train[0], found.notes)) == [f"row {number} of words" for number in range(40)]
    assert ("column" in found.summary()) == (column != "text")
    expected = Tokenizer.train([f"row {number} of words" for number in range(40)], 300).merges
    assert Tokenizer.train(tmp_path / "a.parquet", 300).merges == expected


def invalid(path, kind=pyarrow.string, group=100):
    data = [b"row %d of words " % number * 9 for number in range(400)]
    data[350] = b"caf\xe9 " + data[350]
    array = pyarrow.array(data, pyarrow.binary())
    array = pyarrow.Array.from_buffers(kind(), len(array), array.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": array}), path, row_group_size=group)


@pytest.mark.parametrize("kind", [pyarrow.string, pyarrow.binary])
def test_f38_bytes_that_are_not_utf8_in_parquet_are_named_by_every_reader_and_skipped(tmp_path, kind):
    """F38 (9): a bare codec message, and a run that never ended with --damaged-shards skip."""
    invalid(tmp_path / "train-0.parquet", kind)
    for read in (lambda p: list(read_documents(p)), lambda p: Tokenizer.train(p, 300)):
        with pytest.raises(ValueError, match=r"train-0\.parquet, row 351 is not UTF-8: byte 0xe9 at 3"):
            read(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="row group 3 cannot be read"):
        open_shards(tmp_path).read("train", 3)
    shards = open_shards(tmp_path, on_error="skip")
    assert [len(shards.read("train", block)) for block in range(4)] == [100, 100, 100, 0]
    assert "row 51 is not UTF-8" in shards.problems[0]


def test_f38_half_a_surrogate_is_the_same_for_every_reader(tmp_path):
    """F38 (10)."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "left \\udbc0 over"}\n')
    assert list(read_documents(path)) == ["left � over"]
    assert Tokenizer.train(path, 300).vocab_size == Tokenizer.train(["left � over"], 300).vocab_size


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_f39_other_encodings_are_refused_with_a_command_that_mends_them(tmp_path, encoding, suffix):
    """F39 (37): the hint failed when followed; UTF-16 without a mark passed."""
    text = '{"text": "Müller fuhr über die Brücke."}\n' * 900
    path = tmp_path / f"de 1.{suffix}"
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    for read in (lambda p: list(read_documents(p)), lambda p: Tokenizer.train(p, 300)):
        with pytest.raises(ValueError, match="is not UTF-8 text") as error:
            read(path)
    command = str(error.value).split("convert it: ")[1]
    assert os.system(f"cd '{tmp_path}' && {command.replace('> new', '> mended')}") == 0
    assert (tmp_path / f"mended.{suffix.split('.')[0]}").read_text("utf-8-sig") == text


def test_f39_binary_content_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"text and " * 200_000 + b"\0\1\2" * 9)
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text: byte 0x00 at offset 1800000; a binary file\?"):
        list(read_documents(tmp_path))


def test_f40_a_number_of_5000_digits(tmp_path):
    """F40 (32): neither file nor line were named."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "id": ' + "9" * 5000 + "}\n" + '{"text": "broken", "id": ' + "9" * 5000 + ",}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        list(read_documents(path))
    path.write_text('{"text": "fine", "id": ' + "9" * 5000 + "}\n")
    assert list(read_documents(path)) == ["fine"]


def test_conversations_of_parquet(tmp_path):
    table = pyarrow.Table.from_pylist([{**CHAT, "id": 1}, {"messages": [{**CHAT["messages"][0], "weight": 0}], "id": 2}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    expected = [CHAT, {"messages": [{"role": "user", "content": "Hi", "weight": 0}]}]
    assert read_conversations(tmp_path) == expected
