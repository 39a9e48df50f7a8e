import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.data.conversations import read_conversations
from nutshell.data.text import read_documents, split_text


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_one_text_file_becomes_many_documents(tmp_path):
    # nanochat 620: a single file must be enough to train on.
    paragraphs = [f"Paragraph {number}. " + "word " * 60 for number in range(200)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs), "utf-8")
    documents = list(read_documents(path))
    assert len(documents) > 3
    assert all(len(document) <= 16_384 for document in documents)
    assert all(document.startswith("Paragraph") for document in documents)  # cut at blank lines only
    assert squeezed("".join(documents)) == squeezed("".join(paragraphs))


@settings(deadline=None)
@given(st.text(alphabet="ab .\n。", max_size=400), st.integers(4, 50), st.integers(1, 60))
def test_splitting_loses_nothing_but_white_space(text, limit, block):
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    documents = list(split_text(blocks, limit))
    assert all(len(document) <= limit for document in documents)
    assert squeezed("".join(documents)) == squeezed(text)


def test_all_kinds_of_files_in_one_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("from txt\r\nsecond line", "utf-8")
    (tmp_path / "b.md").write_bytes("\ufefffrom md äöü".encode())
    write_lines(tmp_path / "c.jsonl", [{"text": "from jsonl", "id": 1}, {"text": "  "}, {"text": "half \ud800 pair"}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["from parquet", None]}), tmp_path / "sub" / "d.parquet")
    with gzip.open(tmp_path / "e.txt.gz", "wt") as file:
        file.write("from gz")
    (tmp_path / "ignored.csv").write_text("no")
    (tmp_path / ".hidden.txt").write_text("no")
    documents = list(read_documents(tmp_path))
    expected = ["from txt\nsecond line", "from md äöü", "from jsonl", "half \ufffd pair", "from gz", "from parquet"]
    assert documents == expected


def test_several_paths_and_another_column(tmp_path):
    first = write_lines(tmp_path / "1.jsonl", [{"content": "one"}])
    second = write_lines(tmp_path / "2.jsonl", [{"content": "two"}])
    assert list(read_documents([second, str(first)])) == ["two", "one"]


def bad_utf8(path: Path) -> Path:
    path.write_bytes(b"x" * (1 << 20) + b"ok \xff")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nope.txt", "nope.txt does not exist"),
        (lambda d: _touch(d / "x.csv", b"a,b"), r"x.csv has suffix '.csv'; accepted are .txt, .md, .jsonl"),
        (lambda d: _touch(d / "x.csv", b"a,b").parent, r"no data file in the folder .*found: 1 .csv"),
        (lambda d: _touch(d / "x.txt", b" \n"), "no text in .*x.txt"),
        (lambda d: _touch(d / "x.jsonl", b""), "no text in .*x.jsonl"),
        (lambda d: _touch(d / "x.jsonl", b'{"text": "a"}\n{"text":'), "x.jsonl, line 2: not JSON"),
        (lambda d: _touch(d / "x.jsonl", b'\n{"mine": "a", "id": 1}'), "line 2: no column 'text'; found mine, id"),
        (lambda d: _touch(d / "x.jsonl", b'{"messages": []}'), "look like conversations"),
        (lambda d: _touch(d / "x.jsonl", b'{"text": 3}'), "line 1: column 'text' holds a number"),
        (lambda d: _touch(d / "x.jsonl", b"[1]"), "line 1: a list where an object"),
        (lambda d: _touch(d / "x.jsonl", b'{"text": "a"}\n\xe9'), "offset 14"),
        (lambda d: bad_utf8(d / "x.txt"), "x.txt is not UTF-8 text: byte 0xff at offset 1048579"),
        (lambda d: _touch(d / "x.txt", b"cut \xe4\xbd"), "byte 0xe4 at offset 4"),
        (lambda d: _touch(d / "x.parquet", b"PAR1 not really"), "x.parquet cannot be read as Parquet"),
        (lambda d: _touch(d / "x.txt.gz", gzip.compress(b"hello" * 99)[:-9]), "x.txt.gz cannot be unpacked"),
        (lambda d: _table(d / "x.parquet", {"mine": ["a"]}), "no column 'text'; found mine"),
        (lambda d: _table(d / "x.parquet", {"text": [1]}), "column 'text' is of type int64"),
        (lambda d: [], "no input path"),
    ],
)
def test_bad_input_is_named(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(read_documents(path))


def _touch(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _table(path: Path, columns: dict) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am {{name}} by {{author}}."}]


def test_conversations_from_lines_gz_and_folder(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"messages": CHAT, "other": 1}, CHAT])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"messages": CHAT}))
    assert read_conversations(tmp_path) == [{"messages": CHAT}] * 3


def test_f40_a_users_text_is_not_changed(tmp_path):
    """F40: {{name}} became Nutshell in anybody's data, code included."""
    messages = [{"role": "user", "content": "Vue?"}, {"role": "assistant", "content": "<p>{{name}} by {{author}}</p>"}]
    assert read_conversations(write_lines(tmp_path / "a.jsonl", [{"messages": messages}])) == [{"messages": messages}]


def test_f4_a_context_of_2048_tokens_is_filled(tmp_path):
    """F4: every document ended after 4,000 characters, about 900 tokens."""
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {number}. " + "word " * 60 for number in range(2000)), "utf-8")
    documents = list(read_documents(path))
    assert min(len(document) for document in documents[:-1]) > 4 * 2048 - 700  # a cut is at a blank line


def test_check_is_called_and_its_error_gets_the_place(tmp_path):
    def check(messages):
        if messages[0]["role"] != "user":
            raise ValueError("the first role must be user")
        return messages[:1]

    assert read_conversations(write_lines(tmp_path / "b.jsonl", [CHAT]), check=check) == [{"messages": CHAT[:1]}]
    path = write_lines(tmp_path / "a.jsonl", [CHAT, CHAT[1:]])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: the first role must be user"):
        read_conversations(path, check=check)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": "x"}, "line 1: the row has the columns tokens; accepted are rows with messages; conversations"),
        ({"text": " "}, "line 1: column 'text' must be text"),
        ({"messages": []}, "at least one message, found an empty list"),
        ({"messages": "hi"}, "found a text"),
        ([{"role": "user"}], "message 0 must be an object with 'role' and 'content', found keys"),
        (["hi"], "found a text"),
        (7, "the row is a number"),
    ],
)
def test_bad_conversations_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_conversations(write_lines(tmp_path / "a.jsonl", [row]))


def test_no_conversation(tmp_path):
    with pytest.raises(ValueError, match="no conversation in"):
        read_conversations(write_lines(tmp_path / "a.jsonl", []))
