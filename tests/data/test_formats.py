"""Every way of writing conversations down, in every container, is read as the same conversation."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.data.conversations import find_conversations, read_conversations
from nutshell.data.formats import PAIRS, tell_format
from nutshell.data.rows import kind_of_error
from nutshell.plan.recipe import Recipe
from nutshell.plan.stages import MixturePart
from nutshell.tokenizer import parse_messages
from nutshell.train.examples import read_part

USER, REPLY, SYSTEM = "Why is\nthe sky blue?", 'Air "scatters" blue; light.', "Be brief."
ASKED = [{"role": "user", "content": USER}, {"role": "assistant", "content": REPLY}]
ROWS = {
    "messages": {"messages": ASKED},
    "ShareGPT": {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": REPLY}]},
    "prompt/response": {"prompt": USER, "response": REPLY},
    "prompt/completion": {"prompt": USER, "completion": REPLY},
    "question/answer": {"question": USER, "answer": REPLY},
    "instruction/output": {"instruction": "Why is", "input": "", "output": REPLY},
    "instruction/response": {"instruction": USER, "context": "", "response": REPLY},
}


def packed(path: Path, content: bytes) -> Path:
    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=codec) as file:
        file.write(content)
    return path


def table(rows: list[dict], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.zst", "a.jsonl.bz2", "a.parquet"])
@pytest.mark.parametrize("form", ROWS)
def test_formats_are_told_by_their_rows(tmp_path, form, name):
    rows = [{"id": 1, **ROWS[form]}, ROWS[form]]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if ".json." in name or name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
        packed(path, text.encode())
    found = find_conversations(path, check=parse_messages)
    expected = [{"role": "user", "content": "Why is"}, ASKED[1]] if form == "instruction/output" else ASKED
    assert found.examples == [{"messages": expected}] * 2
    assert found.formats == {form: 2}
    assert found.summary() == f"2 rows of {form}"


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_tables(tmp_path, name, delimiter):
    rows = [{"instruction": "Add,", "input": "1;\t2", "output": REPLY}, {"instruction": USER, "input": "", "output": REPLY}]
    found = read_conversations(packed(tmp_path / name, table(rows, delimiter).encode()))
    assert [example["messages"][0]["content"] for example in found] == ["Add,\n\n1;\t2", USER]
    assert {example["messages"][1]["content"] for example in found} == {REPLY}


def test_a_system_message_beside_the_turns_and_messages_in_a_cell(tmp_path):
    path = packed(tmp_path / "a.jsonl", json.dumps({**ROWS["ShareGPT"], "system": SYSTEM}).encode())
    assert read_conversations(path) == [{"messages": [{"role": "system", "content": SYSTEM}, *ASKED]}]
    path = packed(tmp_path / "a.csv", table([{"messages": json.dumps(ASKED)}], ",").encode())
    assert read_conversations(path) == [{"messages": ASKED}]


def test_openais_calls_in_parquet_where_null_fills_the_fields(tmp_path):
    call = {"type": "function", "function": {"name": "python", "arguments": '{"code": "6*7"}'}}
    turns = [ASKED[0], {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "42"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
    parts = [{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}]
    found = read_conversations(tmp_path / "a.parquet", check=parse_messages)
    assert found == [{"messages": [ASKED[0], {"role": "assistant", "content": parts}]}]


def test_text_alone_is_a_document_and_in_a_folder_of_conversations_for_pretraining(tmp_path):
    path = packed(tmp_path / "a.jsonl", b'{"text": "Once."}\n')
    assert read_conversations(path) == read_conversations(tmp_path) == [{"text": "Once."}]
    packed(tmp_path / "b.jsonl", json.dumps(ROWS["prompt/response"]).encode())
    assert read_conversations(tmp_path) == [{"messages": ASKED}]


def test_one_bad_row_names_its_line_and_counts_all_by_kind(tmp_path):
    good = json.dumps({"messages": ASKED})
    turned, empty = json.dumps({"messages": ASKED[::-1]}), json.dumps({"messages": [ASKED[0], {**ASKED[1], "content": ""}]})
    path = packed(tmp_path / "a.jsonl", "\n".join([good, turned, "{", turned, empty, json.dumps({"id": 1}), good]).encode())
    with pytest.raises(ValueError, match="line 2: ") as error:  # the first, though line 3 is the first that cannot be parsed
        read_conversations(path, check=parse_messages)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}, line 2: message 0 is of role 'assistant' where 'user' is expected: ")
    assert lines[1].startswith(
        "5 of 7 rows are bad (2 × a message is of role 'assistant' where 'user' is expected, 1 × not JSON, "
    )
    assert "1 × a message is empty" in lines[1]
    assert "1 × this row is not of the format of the first ones" in lines[1]
    assert "--skip-bad" in lines[1]
    assert read_conversations(path, check=parse_messages, skip_bad=True) == [{"messages": ASKED}] * 2
    assert "5 bad rows left out" in find_conversations(path, check=parse_messages).summary()
    path = packed(tmp_path / "c.jsonl", f"{turned}\n".encode())
    with pytest.raises(ValueError, match=r"1 of 1 rows are bad \(.*\)\. None remains"):
        read_conversations(path, check=parse_messages, skip_bad=True)
    path = packed(tmp_path / "b.csv", b"prompt,response\nHi,Hello\nHi\nHi,Hello,you\n")
    with pytest.raises(ValueError, match=r"b\.csv, line 3: 1 cells where the head has 2 columns\n2 of 3 rows are bad"):
        read_conversations(path)


def test_a_first_row_that_is_broken_does_not_decide(tmp_path):
    rows = [{"text": "odd"}, ROWS["question/answer"], ROWS["question/answer"]]
    found = find_conversations(packed(tmp_path / "a.json", json.dumps(rows).encode()))
    assert (found.formats, found.bad.total()) == ({"question/answer": 2}, 1)


@given(st.text(max_size=200))
def test_kinds_of_errors_have_no_numbers(error):
    assert not any(character.isdecimal() and character.isascii() for character in kind_of_error("", ValueError(error)))


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), inner),
    max_leaves=6,
)
COLUMNS = [*sorted({name for pair in PAIRS for name in pair}), "messages", "conversations", "input", "text", "system"]


@given(st.dictionaries(st.sampled_from(COLUMNS), JSON) | JSON)
def test_whatever_a_row_holds_is_read_or_an_error(row):
    form = tell_format([row])
    if form is not None:
        with contextlib.suppress(ValueError):
            content = form.read(row)
            assert content if isinstance(content, str) else parse_messages(content)


def test_conversations_without_an_answer_to_learn_are_counted(tmp_path):
    unlearned = [{"messages": ASKED[:1]}, {"messages": [ASKED[0], {**ASKED[1], "weight": 0}]}]
    rows = [*unlearned, {"messages": ASKED}, {"messages": [ASKED[0], {**ASKED[1], "weight": 0.5}]}]
    path = packed(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found = find_conversations(path, check=parse_messages)
    assert found.summary().startswith("3 rows of messages; 2 without an answer to learn; 1 bad rows left out (1 × a message has")
    assert found.first_bad.startswith(f"{path}, line 4: message 1 has the weight 0.5; accepted: 0")
    packed(path, "\n".join(map(json.dumps, unlearned)).encode())
    part = MixturePart(data=str(path))
    with pytest.raises(ValueError, match=r"a\.jsonl: none of its 2 conversations has an answer to learn"):
        read_part(Recipe(), part)


def test_a_row_that_is_null_is_called_so(tmp_path):
    with pytest.raises(ValueError, match="line 1: the row is null; accepted are rows with messages"):
        read_conversations(packed(tmp_path / "a.jsonl", b"null\n"))
