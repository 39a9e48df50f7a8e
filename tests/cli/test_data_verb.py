"""What `nutshell data` prints of the text: F40 (19)."""

import json
import sys
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

FLAGS = "--depth 1 --context 64 --vocab-size 300"
STEERING = [sign for sign in map(chr, range(sys.maxunicode)) if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp")]


def test_f40_a_document_is_shown_without_what_steers_a_terminal(run_command):
    """F40 (19): the whole first document was printed as it was, a million characters and escape sequences included."""
    hostile = "".join(f"\x1b[2J{sign} " for sign in STEERING) + "\x1b]0;x\x07 "
    rows = [f"{hostile[7 * number :]}{number} " + f"\x1b[2Jword{number} " * 20_000 for number in range(5)]
    Path("a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    code, out, err = run_command(f"data {FLAGS} --data a.jsonl --out run")
    assert code == 0, err
    assert len(out) < 2500
    assert all(sign.isprintable() or sign == "\n" for sign in out), ascii(out)
    assert r"\x1b[2J" in out


@pytest.mark.parametrize("first", [None, ""])
def test_f40_a_first_row_group_without_text_is_passed_over(run_command, first):
    """F40 (19): an IndexError."""
    table = pyarrow.table({"text": pyarrow.array([first] * 100 + [f"row {i} " + "w " * 50 for i in range(900)])})
    Path("nul").mkdir()
    pyarrow.parquet.write_table(table, "nul/train-0.parquet", row_group_size=100)
    pyarrow.parquet.write_table(table.slice(500, 100), "nul/val-0.parquet")
    code, out, err = run_command(f"data {FLAGS} --data nul --out run")
    assert (code, "row 0" in out) == (0, True), err
