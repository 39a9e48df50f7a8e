import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nutshell.data.text import as_text, read_documents
from nutshell.tokenizer import Tokenizer, feed

TEXTS = [f"document {number}: it's number {number * 7} of many;\n\nthe quick  brown fox" for number in range(300)]


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TEXTS, vocab_size=500)


def test_neither_order_nor_threads_nor_laziness_matter(trained):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    for texts, threads in ((shuffled, 1), (iter(TEXTS), 3), (TEXTS, 8)):
        assert Tokenizer.train(texts, vocab_size=500, threads=threads).fingerprint == trained.fingerprint


def test_files_give_what_their_texts_give(trained, tmp_path):
    with (tmp_path / "a.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n\n" for text in TEXTS[:100])
    table = pyarrow.table({"id": list(range(101)), "text": [*TEXTS[100:200], None]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.txt").write_text(TEXTS[200], encoding="utf-8")
    (tmp_path / "ignored.csv").write_text("not,text")
    files = [tmp_path / "a.jsonl", tmp_path / "b.parquet", tmp_path / "deeper" / "c.txt"]
    for source in (tmp_path, files, [tmp_path]):
        mixed = [*([source] if isinstance(source, Path) else source), *TEXTS[201:]]
        assert Tokenizer.train(mixed, vocab_size=500).fingerprint == trained.fingerprint
    assert Tokenizer.train(tmp_path, vocab_size=400).merges == Tokenizer.train(TEXTS[:201], vocab_size=400).merges


LETTERS = "aé漢 '1\n"
ROWS = [None, "", *("".join(random.Random(seed).choices(LETTERS, k=seed % 50)) for seed in range(3000)), None]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_gives_what_its_texts_give(kind, tmp_path):
    column = pyarrow.array(ROWS, pyarrow.large_string() if kind == "large_string" else pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column
    expected = Tokenizer.train([text for text in ROWS if text], vocab_size=400)
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=700)
    assert Tokenizer.train(path, vocab_size=400).merges == expected.merges
    assert list(read_documents(path)) == [text for text in ROWS if text and not text.isspace()]
    pyarrow.parquet.write_table(pyarrow.table({"text": column[:0]}), path)
    assert Tokenizer.train([path, *(text for text in ROWS if text)], vocab_size=400).merges == expected.merges


@pytest.mark.parametrize(("start", "end"), [(0, 3002), (1, 2), (2, 2), (17, 900), (3001, 3003)])
def test_buffers_of_a_slice(start, end):
    column = pyarrow.array(ROWS).slice(start, end - start)
    data, offsets = feed.buffers(as_text(column, "row", 0))
    places = [int.from_bytes(offsets[at : at + 8], "little") for at in range(0, len(offsets), 8)]
    texts = [data[a - places[0] : b - places[0]].decode() for a, b in zip(places, places[1:], strict=False)]
    assert texts == [text or "" for text in column.to_pylist()]


def test_parquet_that_holds_no_text(tmp_path):
    path = tmp_path / "bad.parquet"
    rows = pyarrow.array([b"fine"] * 1500 + [b"not \xff fine"], pyarrow.binary())
    broken = pyarrow.Array.from_buffers(pyarrow.string(), len(rows), rows.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(ValueError, match=r"bad\.parquet, row 1501 is not UTF-8: byte 0xff at 4"):
        Tokenizer.train(path, vocab_size=300)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(ValueError, match=r"bad\.parquet: column 'text' is of type int64; a column of strings is needed"):
        Tokenizer.train(path, vocab_size=300)


def test_a_text_file_is_one_text_however_long(tmp_path):
    """It is read by blocks; no piece may be torn where a block ends, a character neither."""
    text = "It's tëxt, 12345 of it!\r\n\n  漢字 and  \t\n so on...\n" * 250_000
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    assert path.stat().st_size > 1 << 23
    for pattern in ("nanochat", "gpt2"):
        from_file = Tokenizer.train(path, vocab_size=320, pattern=pattern)
        assert from_file.merges == Tokenizer.train([text], vocab_size=320, pattern=pattern).merges


def test_progress_is_told_and_may_raise(tmp_path):
    heard = []
    Tokenizer.train(TEXTS, vocab_size=400, progress=lambda *now: heard.append(now))
    assert heard[0] == ("read", sum(map(len, TEXTS)))
    assert heard[-1][0] == "merge"
    assert heard == sorted(heard, key=lambda now: (now[0] != "read", now[1]))

    def stop(stage, done):
        raise RuntimeError(f"enough of {stage}")

    with pytest.raises(RuntimeError, match="enough of read"):
        Tokenizer.train(TEXTS, vocab_size=400, progress=stop)


def test_a_text_with_few_pairs_gives_a_smaller_vocabulary():
    tok = Tokenizer.train(["aaaa"], vocab_size=1000)
    assert tok.merges == ((97, 97), (256, 256))
    assert tok.vocab_size == 267


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "qwen2", r"\S+|\s+", r"\d"])
def test_other_patterns(pattern, tmp_path):
    tok = Tokenizer.train(TEXTS, vocab_size=400, pattern=pattern)
    text = "It's NewText 1234,\n\n漢字  end "
    assert tok.decode(tok.encode(text)) == text
    assert "".join(tok.split(text)) == text
    tok.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(text) == tok.encode(text)


@pytest.mark.parametrize("vocab_size", [264, 0, -1, 300.0, "300", None, True])
def test_impossible_vocabularies(vocab_size):
    with pytest.raises(ValueError, match=r"vocab_size is .*265"):
        Tokenizer.train(TEXTS, vocab_size=vocab_size)
    assert Tokenizer.train(TEXTS, vocab_size=265).vocab_size == 265


def test_wrong_sources(tmp_path):
    def refused(source, message, kind=ValueError):
        with pytest.raises(kind, match=message):
            Tokenizer.train(source, vocab_size=300)

    refused("text", r"got one str; give \[text\] for a text and pathlib\.Path")
    refused([], "no text to train a tokenizer on")
    refused(["", ""], "no text to train a tokenizer on")
    refused(["fine", 7], r"7 \(int\) is neither a text \(str\) nor a file")
    refused(tmp_path / "missing.txt", r"missing\.txt does not exist", FileNotFoundError)
    refused(tmp_path, r"no data file in the folder .*; accepted are \.txt, \.md, \.jsonl")
    with pytest.raises(ValueError, match=r'"\(" is not a split pattern: it is none of the names nanochat, gpt2'):
        Tokenizer.train(TEXTS, vocab_size=300, pattern="(")
