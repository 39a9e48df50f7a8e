"""Tasks: what they load, how they sample, how they judge replies, and what they say about bad input."""

import json
import os
from pathlib import Path

import pytest

from nutshell.tasks import TASK_NAMES, Item, load_task
from nutshell.tasks.primer import GRADERS, grade_letters, grade_sums, rl_items
from nutshell.tasks.task import last_number, subsample

DATA = Path(os.environ.get("NUTSHELL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def item(answer, options=()):
    return Item(messages=[{"role": "user", "content": "?"}], answer=answer, options=options)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["primer-facts", "primer-sums", "primer-letters", "primer-vowels"])
def test_primer_tasks_load_without_files(name):
    task = load_task(name, limit=50)
    assert task.name == name
    assert len(task.items) == 50
    assert task.kind == ("choice" if name == "primer-facts" else "generate")
    assert 0 <= task.baseline < 0.5
    for each in task.items:
        assert each.messages[-1]["role"] == "user"
        assert bool(each.options) == (task.kind == "choice")
        assert not each.options or each.answer in each.options


def test_the_seed_decides_the_subsample():
    first = load_task("primer-sums", limit=20, seed=1).items
    assert load_task("primer-sums", limit=20, seed=1).items == first
    assert load_task("primer-sums", limit=20, seed=2).items != first
    everything = load_task("primer-sums").items
    assert [each for each in everything if each in first] == first  # in the order of the full task
    assert load_task("primer-sums", limit=10**6).items == everything


def test_primer_graders_accept_the_primers_own_replies():
    task = load_task("primer-letters", limit=30)
    for each in task.items:
        assert task.grade(each, f"I count x in y: y0 x1. The letter x appears {each.answer} times in y.")
        assert not task.grade(each, f"The letter x appears {int(each.answer) + 1} times in y.")
    facts = load_task("primer-facts", limit=30)
    assert all(facts.grade(each, each.answer) for each in facts.items)
    assert not any(facts.grade(each, option) for each in facts.items for option in each.options if option != each.answer)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("473 + 58 = 531.", True),
        ("473+58531473 + 58 = 531.", True),  # a completion's text may hold the tool's output too
        ("531", True),
        ("531 apples", True),
        ("473 + 58 = 532.", False),
        ("473 + 58 = 531. No, 530.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_sums_are_graded_by_the_last_number(text, right):
    assert grade_sums(item("531"), text) is right


def test_sums_may_be_negative():
    assert grade_sums(item("-4"), "5 - 9 = -4.")
    assert not grade_sums(item("-4"), "5 - 9 = 4.")
    assert grade_sums(item("4"), "9-5 = 4")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("I count a in banana: b0 a1 n1 a2 n2 a3. The letter a appears 3 times in banana.", True),
        ("It appears 1 time. No, 3 times.", True),
        ("3", True),
        ("There are 3.", True),
        ("I count a in banana: b0 a1 n1 a2 n2 a3.", False),  # a running count is no answer
        ("The letter a appears 2 times in banana.", False),
        ("", False),
    ],
)
def test_letters_are_graded_by_the_stated_count(text, right):
    assert grade_letters(item("3"), text) is right


def test_rl_items_come_with_graders():
    kinds = set()
    for kind, each in rl_items(seed=0, count=60):
        kinds.add(kind)
        reply = {"sums": "= {}", "letters": "{} times", "vowels": "b0 a1. The word has {} vowels."}[kind].format(each.answer)
        assert GRADERS[kind](each, reply)
    assert kinds == set(GRADERS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("b0 a1 n1. It is 1,200.", "1200"), ("12.50 dollars", "12.5"), ("-7", "-7"), ("7-3", "3"), ("none", None)],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_unknown_names_and_bad_limits_are_refused():
    with pytest.raises(ValueError, match=r"unknown task 'arc'; known tasks: primer-facts, .*custom"):
        load_task("arc")
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        load_task("primer-facts", limit=0)
    with pytest.raises(ValueError, match="examples must be 0 or more, got -1"):
        load_task("primer-facts", examples=-1)


@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge", "gsm8k", "custom"])
def test_missing_folders_are_named(name, tmp_path):
    with pytest.raises(ValueError, match="give data_folder"):
        load_task(name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_task(name, data_folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="this task needs JSONL rows"):
        load_task(name, data_folder=tmp_path)


ARC_ROW = {"id": "1", "question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"}


def test_arc_shows_lettered_options_and_accepts_the_letter(tmp_path):
    write(tmp_path / "arc" / "ARC-Easy-test.jsonl", ARC_ROW)
    task = load_task("arc-easy", data_folder=tmp_path)
    (each,) = task.items
    assert each.messages == [{"role": "user", "content": "Which is hot?\nA) ice\nB) fire\nReply with the letter only."}]
    assert (each.options, each.answer, task.baseline) == (("A", "B"), "B", 0.5)
    assert task.grade(each, "B")
    assert task.grade(each, "B) fire")
    assert not task.grade(each, "A")
    assert not task.grade(each, "Because")


def test_arc_examples_come_from_train_and_are_clamped(tmp_path):
    write(tmp_path / "arc" / "ARC-Easy-test.jsonl", ARC_ROW)
    write(tmp_path / "arc" / "ARC-Easy-train.jsonl", *[ARC_ROW] * 3)
    (each,) = load_task("arc-easy", data_folder=tmp_path, examples=99).items
    assert [message["role"] for message in each.messages] == ["user", "assistant"] * 3 + ["user"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
        {"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
        {"question": "?"},
    ],
)
def test_malformed_arc_rows_are_located(row, tmp_path):
    write(tmp_path / "arc" / "ARC-Easy-test.jsonl", ARC_ROW, row)
    with pytest.raises(ValueError, match=r"ARC-Easy-test\.jsonl, line 2: expected JSONL rows"):
        load_task("arc-easy", data_folder=tmp_path)


def test_gsm8k_grades_the_marked_or_the_last_number(tmp_path):
    row = {"question": "How much is 600 twice?", "answer": "600*2 = <<600*2=1200>>1200.\n#### 1,200"}
    write(tmp_path / "gsm8k" / "test.jsonl", row)
    write(tmp_path / "gsm8k" / "train.jsonl", *[row] * 20)
    task = load_task("gsm8k", data_folder=tmp_path, examples=50)
    (each,) = task.items
    assert each.answer == "1200"
    assert len(each.messages) == 17  # 8 examples at most, and the question
    assert "<<" not in each.messages[1]["content"]
    assert task.grade(each, "It is 1,200.")
    assert task.grade(each, "... 7\n#### 1200")
    assert task.grade(each, "#### 1200.00 dollars")
    assert not task.grade(each, "1200\n#### 600")
    assert not task.grade(each, "")


def test_malformed_gsm8k_rows_are_located(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "?", "answer": "no mark"})
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: expected .*####"):
        load_task("gsm8k", data_folder=tmp_path)


def test_custom_rows_in_all_forms(tmp_path):
    asked = [{"role": "user", "content": "Capital of Italy?"}]
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "Capital of France?", "answer": "Paris"},
        "",
        {"messages": asked, "answer": "Rome"},
        {"messages": [*asked, {"role": "assistant", "content": "Rome."}]},
        {"question": "Two and two?", "answer": 4},
    )
    task = load_task("custom", data_folder=path)
    assert (task.kind, [each.answer for each in task.items]) == ("generate", ["Paris", "Rome", "Rome.", "4"])
    assert task.grade(task.items[0], " paris. ")
    assert task.grade(task.items[3], "2 + 2 = 4.")
    assert not task.grade(task.items[3], "5")
    assert not task.grade(task.items[0], "London")


@pytest.mark.parametrize("answer", ["Paris", "B", 1])
def test_custom_choices_take_text_letter_or_index(answer, tmp_path):
    write(tmp_path / "custom.jsonl", {"question": "Capital of France?", "options": ["Rome", "Paris"], "answer": answer})
    task = load_task("custom", data_folder=tmp_path)
    assert (task.kind, task.items[0].answer, task.items[0].options) == ("choice", "B", ("A", "B"))
    assert task.grade(task.items[0], "B")


def test_custom_conversations_score_their_options_as_replies(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}], "options": ["Hello!", "Go away."], "answer": "Hello!"}
    path = write(tmp_path / "a.jsonl", row)
    task = load_task("custom", data_folder=path)
    assert task.items[0].options == ("Hello!", "Go away.")
    assert task.grade(task.items[0], "Hello!")
    assert not task.grade(task.items[0], "Go away.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"line 2: not JSON"),
        ("[1]", r"line 2: a JSON object is needed, got list"),
        ({"prompt": "?", "answer": "x"}, r"line 2: expected .* got the columns prompt, answer"),
        ({"question": "?"}, r"line 2: answer must be a text or a whole number, got None"),
        ({"question": "?", "answer": "x", "options": ["x"]}, r"line 2: options must be a list of 2 to 10 texts"),
        ({"question": "?", "answer": "x", "options": ["y", "y"]}, r"line 2: options must differ"),
        ({"question": "?", "answer": "x", "options": ["y", "z"]}, r"line 2: answer must be one of the options"),
        ({"question": "?", "answer": "y", "options": ["y", "z"]}, r"line 2: either every row has options or none has"),
        ({"messages": []}, r"line 2: messages must be a list"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"line 2: messages must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"line 2: the conversation must have a user's message"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"line 2: answer must be a text"),
    ],
)
def test_malformed_custom_rows_are_located(row, message, tmp_path):
    path = write(tmp_path / "mine.jsonl", {"question": "?", "answer": "x"}, row)
    with pytest.raises(ValueError, match=r"mine\.jsonl, " + message):
        load_task("custom", data_folder=path)


def test_empty_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_task("custom", data_folder=write(tmp_path / "empty.jsonl", ""))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00\x01\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_task("custom", data_folder=binary)


def test_subsample_keeps_order():
    assert subsample(range(10), None, 0) == list(range(10))
    assert subsample(range(100), 30, 5) == sorted(subsample(range(100), 30, 5))


@pytest.mark.skipif(not (DATA / "eval" / "arc").is_dir(), reason="no benchmark data beside the repository (NUTSHELL_DATA)")
@pytest.mark.parametrize(("name", "count"), [("arc-easy", 2376), ("arc-challenge", 1172), ("gsm8k", 1319)])
def test_real_benchmarks_load(name, count):
    task = load_task(name, data_folder=DATA / "eval")
    assert len(task.items) == count
    assert len(load_task(name, data_folder=DATA / "eval", limit=7, examples=3).items) == 7
    assert name == "gsm8k" or 0.24 < task.baseline < 0.26


def test_task_names_are_the_documented_ones():
    primer = ("primer-facts", "primer-sums", "primer-letters", "primer-vowels")
    assert (*primer, "arc-easy", "arc-challenge", "gsm8k", "custom") == TASK_NAMES
