"""Tasks: what they load, how they sample, how they judge replies, and what they say about bad input."""

import json
import os
from pathlib import Path

import pytest

from nutshell.tasks import GROUPS, TASK_NAMES, Item, load_task, task_names
from nutshell.tasks.practice import open_practice
from nutshell.tasks.primer import GRADERS, grade_letters, grade_spelling, grade_sums
from nutshell.tasks.task import last_number, subsample
from nutshell.tokenizer.chat import parse_messages

DATA = Path(os.environ.get("NUTSHELL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def item(answer, options=()):
    return Item(messages=[{"role": "user", "content": "?"}], answer=answer, options=options)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["primer-facts", "primer-sums", "primer-letters", "primer-vowels", "spelling"])
def test_primer_tasks_load_without_files(name):
    task = load_task(name, limit=50)
    assert task.name == name
    assert len(task.items) == 50
    assert task.kind == ("choice" if name == "primer-facts" else "generate")
    assert 0 <= task.baseline <= 0.5
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
    assert grade_sums(item("531"), text) == right


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
    assert grade_letters(item("3"), text) == right


def test_what_rl_practises_comes_with_graders():
    kinds = set()
    for name, each, grade in open_practice(()).draw(seed=0, count=60):
        kinds.add(name)
        reply = {"sums": "= {}", "letters": "{} times", "vowels": "b0 a1. The word has {} vowels."}[name[7:]].format(each.answer)
        assert grade(each, reply)
    assert kinds == {f"primer-{kind}" for kind in GRADERS}


@pytest.mark.parametrize(
    ("text", "number"),
    [("b0 a1 n1. It is 1,200.", "1200"), ("12.50 dollars", "12.5"), ("-7", "-7"), ("7-3", "3"), ("none", None)],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(("text", "right"), [
    ("I spell tiger: t i g e r.", 1), ("t-i-g-e-r", 1), ("T, I, G, E, R", 1), ("t i g r e", 0), ("tiger", 0),
])  # fmt: skip
def test_spelling_is_graded_by_the_letters(text, right):
    assert grade_spelling(item("tiger"), text) == right


def test_names_are_split_and_grouped():
    assert task_names(["arc, gsm8k", "spelling", "gsm8k", ","]) == ["arc-easy", "arc-challenge", "gsm8k", "spelling"]
    assert {name for group in GROUPS.values() for name in group} <= set(TASK_NAMES)


def test_unknown_names_and_bad_limits_are_refused():
    with pytest.raises(ValueError, match=r"unknown task 'gsmk8'\. Did you mean gsm8k\? Accepted: primer-facts, .*jsonl file"):
        task_names(["arc,gsmk8"])
    with pytest.raises(ValueError, match="arc is a name for several tasks; give arc-easy, arc-challenge"):
        load_task("arc")
    with pytest.raises(ValueError, match="limit is 0; accepted: 1 or more"):
        load_task("primer-facts", limit=0)
    with pytest.raises(ValueError, match="shots is -1; accepted: 0 or more"):
        load_task("primer-facts", shots=-1)


@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge", "mmlu", "gsm8k", "core"])
def test_missing_folders_are_named_with_what_to_get(name, tmp_path):
    with pytest.raises(ValueError, match="give --eval-data FOLDER"):
        load_task(name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_task(name, data_folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"does not exist; .*nutshell data download"):
        load_task(name, data_folder=tmp_path)


ARC_ROW = {"id": "1", "question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"}


def test_arc_shows_lettered_choices_and_takes_the_letter(tmp_path):
    write(tmp_path / "arc" / "ARC-Easy-test.jsonl", ARC_ROW)
    task = load_task("arc-easy", data_folder=tmp_path)
    (each,) = task.items
    text = "Multiple Choice question: Which is hot?\n- ice=1\n- fire=2\n\nRespond only with the letter of the correct answer."
    assert each.messages == [{"role": "user", "content": text}]
    assert (each.options, each.answer, task.baseline) == (("1", "2"), "2", 0.5)
    assert each.conversation[-1] == {"role": "assistant", "content": "2"}
    assert [task.grade(each, reply) for reply in ("2", "2) fire", "1", "Because")] == [1, 1, 0, 0]


def test_arc_examples_come_from_train_and_are_clamped(tmp_path):
    write(tmp_path / "arc" / "ARC-Easy-test.jsonl", ARC_ROW)
    write(tmp_path / "arc" / "ARC-Easy-train.jsonl", *[ARC_ROW] * 3)
    task = load_task("arc-easy", data_folder=tmp_path, shots=99)
    assert [message["role"] for message in task.items[0].messages] == ["user", "assistant"] * 3 + ["user"]
    assert task.notes == ("3 examples instead of 99: the train split has no more",)


def test_mmlu_examples_are_those_of_the_subject(tmp_path):
    rows = [{"question": f"{s}{n}", "subject": s, "choices": [*"wxyz"], "answer": n % 4} for s in "ab" for n in range(6)]
    write(tmp_path / "mmlu" / "dev.jsonl", *rows)
    write(tmp_path / "mmlu" / "test.jsonl", rows[7], rows[0])
    task = load_task("mmlu", data_folder=tmp_path, shots=5)
    for each, subject in zip(task.items, "ba", strict=True):
        questions = [message["content"].split("\n")[0] for message in each.messages[:-1:2]]
        assert questions == [f"Multiple Choice question: {subject}{n}" for n in range(5)]
        assert [message["content"] for message in each.messages[1::2]] == [*"ABCDA"]
    assert (task.items[0].answer, task.baseline, task.notes) == ("B", 0.25, ())
    write(tmp_path / "mmlu" / "test.jsonl", {**rows[0], "answer": 4})
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: accepted: JSON lines with question"):
        load_task("mmlu", data_folder=tmp_path)


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
    with pytest.raises(ValueError, match=r"ARC-Easy-test\.jsonl, line 2: accepted: JSON lines"):
        load_task("arc-easy", data_folder=tmp_path)


def test_gsm8k_teaches_the_calculator_and_grades_the_marked_or_the_last_number(tmp_path):
    row = {"question": "How much is 600 twice?", "answer": "600*2 = <<600*2=1200>>1200.\n#### 1,200"}
    write(tmp_path / "gsm8k" / "test.jsonl", row)
    write(tmp_path / "gsm8k" / "train.jsonl", *[row] * 20)
    task = load_task("gsm8k", data_folder=tmp_path, shots=8)
    (each,) = task.items
    assert each.answer == "1200"
    assert len(each.messages) == 17
    assert each.conversation[-1]["content"] == [
        {"type": "text", "text": "600*2 = "}, {"type": "python", "text": "600*2"}, {"type": "python_output", "text": "1200"},
        {"type": "text", "text": "1200.\n#### 1,200"},
    ]  # fmt: skip
    assert parse_messages(each.conversation)
    replies = ("It is 1,200.", "... 7\n#### 1200", "#### 1200.00 dollars", "1200\n#### 600", "")
    assert [task.grade(each, reply) for reply in replies] == [1, 1, 1, 0, 0]


def test_malformed_gsm8k_rows_are_located(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "?", "answer": "no mark"})
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: accepted: .*####"):
        load_task("gsm8k", data_folder=tmp_path)


def test_own_rows_in_all_forms(tmp_path):
    asked = [{"role": "user", "content": "Capital of Italy?"}]
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "Capital of France?", "answer": "Paris"},
        "",
        {"messages": asked, "answer": "Rome"},
        {"messages": [*asked, {"role": "assistant", "content": "Rome."}]},
        {"question": "Two and two?", "answer": 4},
        {"question": "A big cat?", "answer": ["tiger", "lion"]},
        {"question": "A year of the last century?", "regex": r"\b19\d\d\b"},
        {"question": "A half?", "answer": 0.5},
    )
    task = load_task(str(path))
    assert (task.kind, [each.answer for each in task.items]) == ("generate", ["Paris", "Rome", "Rome.", "4", "tiger", "", "0.5"])
    assert task.grade(task.items[0], " paris. ")
    assert task.grade(task.items[3], "2 + 2 = 4.")
    assert not task.grade(task.items[3], "5")
    assert task.grade(task.items[6], "It is 0.50.")
    assert not task.grade(task.items[0], "London")
    assert [task.grade(task.items[4], reply) for reply in ("Lion.", "tiger", "cat")] == [1, 1, 0]
    assert [task.grade(task.items[5], reply) for reply in ("In 1984.", "In 2001.", "")] == [1, 0, 0]


@pytest.mark.parametrize("answer", ["Paris", "B", 1])
def test_own_choices_take_text_letter_or_index(answer, tmp_path):
    path = write(tmp_path / "custom.jsonl", {"question": "Capital of France?", "choices": ["Rome", "Paris"], "answer": answer})
    task = load_task("custom", data_folder=path)
    assert (task.kind, task.items[0].answer, task.items[0].options) == ("choice", "B", ("A", "B"))
    assert task.grade(task.items[0], "B")


def test_own_conversations_score_their_options_as_replies(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}], "options": ["Hello!", "Go away."], "answer": "Hello!"}
    path = write(tmp_path / "a.jsonl", row)
    task = load_task(str(path))
    assert task.items[0].options == ("Hello!", "Go away.")
    assert task.grade(task.items[0], "Hello!")
    assert not task.grade(task.items[0], "Go away.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"line 2: not JSON"),
        ("[1]", r"line 2: a list; accepted"),
        ({"query": "?", "answer": "x"}, r"line 2: has query, answer; accepted"),
        ({"question": "?"}, r"line 2: answer is None; accepted"),
        ({"question": "?", "answer": "x", "options": ["x"]}, r"line 2: choices are .*; accepted: a list of 2 to 10 texts"),
        ({"question": "?", "answer": "x", "options": ["y", "y"]}, r"line 2: choices are .*; they must differ"),
        ({"question": "?", "answer": "x", "options": ["y", "z"]}, r"line 2: answer is .*; accepted: one of the choices"),
        ({"question": "?", "answer": "y", "options": ["y", "z"]}, r"line 2: either every row has choices or none has"),
        ({"question": "?", "regex": "("}, r"line 2: regex is '\('; accepted: a regular expression"),
        ({"messages": []}, r"line 2: messages must be a list"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"line 2: messages must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"line 2: the conversation must have a user's message"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"line 2: answer is None; accepted"),
    ],
)
def test_malformed_custom_rows_are_located(row, message, tmp_path):
    path = write(tmp_path / "mine.jsonl", {"question": "?", "answer": "x"}, row)
    with pytest.raises(ValueError, match=r"mine\.jsonl, " + message):
        load_task(str(path))


def test_empty_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_task(str(write(tmp_path / "empty.jsonl", "")))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00\x01\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_task(str(binary))


TASK_FILE = """
from nutshell.tasks import Item, Task

def task():
    items = [Item(messages=[{"role": "user", "content": f"{n} + 1?"}], answer=str(n + 1)) for n in range(5)]
    return Task(items=items, grade=lambda item, reply: 0.5 * (item.answer in reply), baseline=0.1)

def rows():
    return [{"question": "1 + 1?", "choices": ["1", "2"], "answer": "2"}]

def broken():
    return 1 / 0

nothing = 3
def empty(): return []
def one_by_one():
    yield {"question": "1 + 1?", "answer": 2}
def no_items(): return Task(items=[{"question": "1 + 1?", "answer": 2}])
"""


def test_a_task_may_be_a_function_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TASK_FILE)
    task = load_task(f"{path}:task", limit=2)
    assert (task.name, len(task.items), task.baseline, task.kind) == (f"{path}:task", 2, 0.1, "generate")
    assert task.grade(task.items[0], f"it is {task.items[0].answer}") == 0.5
    assert load_task(f"{path}:rows").kind == "choice"
    assert load_task(f"{path}:one_by_one").items[0].answer == "2"
    for name, message in (
        ("broken", "raised ZeroDivisionError in line 12: division by zero"), ("tusk", "no function 'tusk'. Did you mean task?"),
        ("nothing", "no function 'nothing'"), ("no_items", "has the items .*; accepted: a list of at least one Item"),
        ("empty", r"returned \[\]; accepted: a Task, or a list of rows with question"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_task(f"{path}:{name}")
    with pytest.raises(FileNotFoundError, match=r"other\.py does not exist"):
        load_task(f"{tmp_path}/other.py:task")
    with pytest.raises(ValueError, match=r"mine\.py names no function. Give .*mine\.py:task"):
        load_task(str(path))
    path.write_text("import nowhere_to_be_found")
    with pytest.raises(ValueError, match="raised ModuleNotFoundError in line 1"):
        load_task(f"{path}:task")


def test_subsample_keeps_order():
    assert subsample(range(10), None, 0) == list(range(10))
    assert subsample(range(100), 30, 5) == sorted(subsample(range(100), 30, 5))


@pytest.mark.skipif(not (DATA / "eval" / "arc").is_dir(), reason="no benchmark data beside the repository (NUTSHELL_DATA)")
@pytest.mark.parametrize(("name", "count"), [("arc-easy", 2376), ("arc-challenge", 1172), ("gsm8k", 1319), ("mmlu", 14042)])
def test_real_benchmarks_load(name, count):
    task = load_task(name, data_folder=DATA / "eval")
    assert len(task.items) == count
    assert len(load_task(name, data_folder=DATA / "eval", limit=7, shots=3).items) == 7
    assert name == "gsm8k" or 0.24 < task.baseline < 0.26
