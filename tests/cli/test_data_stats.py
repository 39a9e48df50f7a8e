"""`nutshell data stats`: what a file of conversations holds, before anything is trained."""

import json
from pathlib import Path

import pytest

from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import render


@pytest.fixture
def folder():
    """A tokenizer of bytes and special tokens."""
    Tokenizer([], "gpt2").with_special_tokens().save(Path("tok"))
    return "tok"


def pair(question, answer):
    return {"question": question, "answer": answer}


def test_stats_of_conversations(run_command, folder):
    rows = [pair("Hi", "Hello"), pair("Hi", "Hello"), pair("Tell", "word " * 30), pair("", "x"), 7]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run_command("data stats a.jsonl --tokenizer tok --context 60 --json")
    facts = json.loads(out)
    tok = Tokenizer.load(Path("tok"))
    lengths = [
        len(render([{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}], tok)[0])
        for r in rows[:3]
    ]
    assert code == 0
    assert (facts["rows"], facts["formats"], facts["duplicates"]) == (3, {"question/answer": 3}, 1)
    assert facts["messages"] == {"user": 3, "assistant": 3}
    assert (facts["tokens"], facts["length"]["longest"]) == (sum(lengths), max(lengths))
    assert facts["learned"] == 2 * (len("Hello") + 1) + len("word " * 30) + 1
    assert (facts["longer"], facts["cropped"], facts["cropped_tokens"]) == (1, 1, max(lengths) - 61)
    assert sum(facts["bad"].values()) == 2
    assert facts["first_bad"].endswith("a.jsonl, line 4: column 'question' must be text, found ''")
    page = run_command("data stats a.jsonl")[1]
    assert "format      3 rows of question/answer" in page
    assert "tokens      not counted" in page
    assert "bad rows    2" in page
    assert "unlearned" not in page


def test_conversations_that_teach_nothing_are_counted(run_command, folder):
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    rows = [[question], [question, {**answer, "weight": 0}], [question, {**answer, "train": False}], [question, answer]]
    Path("a.json").write_text(json.dumps(rows))
    for tokens in ("", "--tokenizer tok"):
        assert "unlearned   3 rows have no answer to learn" in run_command(f"data stats a.json {tokens}")[1]


def test_stats_of_text_and_of_what_is_no_data(run_command, folder):
    Path("a.txt").write_text("Once upon a time.\n")
    assert "1 rows of text" in run_command("data stats a.txt --tokenizer tok")[1]
    Path("b.jsonl").write_text('{"tokens": 1}\n')
    for line, error in (("data stats b.jsonl", "has the columns tokens"), ("data stats c.csv", "does not exist")):
        code, _, err = run_command(line)
        assert code == 2
        assert error in err
