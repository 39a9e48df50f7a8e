"""Pairs of answers from every layout that is accepted, and what is refused by name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nutshell.data.preferences import Pair, read_pairs
from nutshell.tokenizer.chat import parse_messages


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


ASKED, GOOD, BAD = said("user", "Hi?"), said("assistant", "Hello."), said("assistant", "Go away.")
SAME = {
    "texts": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."},
    "question": {"question": "Hi?", "chosen": "Hello.", "rejected": "Go away.", "score": 3},
    "answers as messages": {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
    "prompt as messages": {"prompt": [ASKED], "chosen": "Hello.", "rejected": [BAD]},
    "whole conversations": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "whole conversations beside their prompt": {"prompt": "Hi?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
}


def read(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(path, parse_messages)


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_all_layouts_are_the_same_pair(tmp_path, row):
    assert read(tmp_path / "a.jsonl", row) == [Pair([ASKED, GOOD], [ASKED, BAD])]


def test_a_system_message_and_earlier_turns_are_kept(tmp_path):
    start = [said("system", "Be kind."), ASKED, said("assistant", "Yes?"), said("user", "Hm.")]
    expected = [Pair([*start, GOOD], [*start, BAD])]
    assert read(tmp_path / "a.jsonl", {"prompt": start, "chosen": "Hello.", "rejected": "Go away."}) == expected
    assert read(tmp_path / "b.jsonl", {"system": "Be kind.", **SAME["texts"]})[0].chosen == [start[0], ASKED, GOOD]


def test_parquet_and_lists_of_json_are_read_alike(tmp_path):
    rows = [SAME["whole conversations"], SAME["whole conversations"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_pairs(tmp_path / "a.parquet", parse_messages) == read_pairs(tmp_path / "a.json", parse_messages)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi?", "chosen": "Hello."}, "line 2: has prompt, chosen, but no rejected; accepted: prompt, chosen and"),
        ({"prompt": "Hi?", "response": "Hello."}, "no chosen and no rejected"),
        ({"chosen": "Hello.", "rejected": "Go away."}, "no prompt before the answer"),
        ({"chosen": [ASKED, GOOD], "rejected": [said("user", "Ho?"), BAD]}, "differ before their last message"),
        ({"chosen": [ASKED], "rejected": [ASKED]}, "chosen ends with the message of a user"),
        ({"prompt": "Hi?", "chosen": 7, "rejected": "Go away."}, "chosen is 7; accepted: a text or a list"),
        ([1], "a list; accepted: an object"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, row, problem):
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{problem.removeprefix('line 2: ')}"):
        read(tmp_path / "a.jsonl", SAME["texts"], row)


def test_no_file_and_no_rows_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_pairs(tmp_path / "nowhere.jsonl", parse_messages)
    with pytest.raises(ValueError, match="holds no pair"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="equal in every row"):
        read(tmp_path / "alike.jsonl", {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Hello."})
