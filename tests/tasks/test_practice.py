"""What RL practises: problems by seed, parts held out, own files and rewards, and rewards that fail."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nutshell.tasks.practice import open_practice
from nutshell.tasks.reward import Grader, load_reward
from nutshell.tasks.task import Item

ITEM = Item(messages=[{"role": "user", "content": "Name a colour."}], index=7, details={"target": "red"})


@pytest.fixture
def rewards(tmp_path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(
        "import time\n\n\ndef grade(item, completion):\n    return float(item['target'] in completion)\n\n\n"
        "def slow(item, completion):\n    try:\n        time.sleep(60)\n    except Exception:\n        pass\n    return 1.0\n\n\n"
        "def one(item):\n    return 1.0\n\n\nasync def later(item, completion):\n    return 1.0\n"
    )
    return file


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [
        *({"prompt": f"Say {n}.", "target": str(n)} for n in range(18)),
        {"question": "Say x.", "target": "x", "answer": {}},  # its own grader takes no such answer; a reward may
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say y."}], "target": "y"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_reward_grades_the_rows_of_a_file(rewards, prompts):
    practice = open_practice([str(prompts)], reward=f"{rewards}:grade", held_out=100, seed=1)
    tests = practice.held_out(100)
    drawn = practice.draw(5, 16)
    assert len(tests) == 4  # a fifth of 20
    asked = [item.messages[-1]["content"] for _, item, _ in drawn]
    assert len(set(asked)) == 16  # none twice before all were drawn
    assert not set(asked) & {item.messages[-1]["content"] for _, item, _ in tests}
    assert all(grade(item, f"I say {item['target']}") == 1 and grade(item, "no") == 0 for _, item, grade in [*drawn, *tests])
    assert [item for _, item, _ in practice.draw(5, 40)][:16] == [item for _, item, _ in drawn]
    assert len({item.index for _, item, _ in practice.draw(5, 16)} | {item.index for _, item, _ in practice.draw(6, 16)}) == 16


def test_the_primer_gives_training_problems_and_holds_out_others():
    practice = open_practice(["primer-sums", "primer-vowels"])
    drawn, tests = practice.draw(0, 200), practice.held_out(32)
    assert {name for name, _, _ in drawn} == {name for name, _, _ in tests} == {"primer-sums", "primer-vowels"}
    assert len(tests) == 32
    assert not {item.messages[-1]["content"] for _, item, _ in drawn} & {item.messages[-1]["content"] for _, item, _ in tests}


def test_rows_of_ones_own_mix_with_the_primer(rewards, prompts):
    practice = open_practice([str(prompts), "primer-sums"], reward=f"{rewards}:grade", held_out=4)
    assert {name for name, _, _ in practice.draw(0, 64)} == {"prompts.jsonl", "primer-sums"}
    assert {name for name, _, _ in practice.held_out(8)} == {"prompts.jsonl", "primer-sums"}


@pytest.mark.parametrize(
    ("names", "reward", "problem"),
    [
        (["{folder}/none.jsonl"], "", "none.jsonl does not exist"),
        (["humaneval"], "", "the task humaneval has no items to train on, only its test. Accepted: primer-sums"),
        (["primer-summs"], "", "unknown task 'primer-summs'. Did you mean primer-sums"),
        (["gsm8k"], "", "gsm8k reads files"),
        (["{folder}/prompts.jsonl"], "", "line 1: answer is None"),
        ([], "{folder}/rewards.py:grad", "has no function 'grad'. Did you mean grade"),
        ([], "{folder}/rewards.py", "accepted: a file and a function in it"),
        ([], "{folder}/nowhere.py:grade", "nowhere.py does not exist; the reward"),
        ([], "{folder}/rewards.py:one", r"does not take \(item, completion\)"),
        ([], "{folder}/rewards.py:later", "is async, which gives no number at once"),
    ],
)
def test_what_cannot_be_practised_is_said(tmp_path, rewards, prompts, names, reward, problem):
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        open_practice([name.format(folder=tmp_path) for name in names], reward=reward.format(folder=tmp_path))


def test_a_file_that_raises_is_named_with_its_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import math\n\nlimit = math.sqrt(-1)\n")
    with pytest.raises(ValueError, match=r"broken\.py:grade raised ValueError in line 3: "):
        load_reward(f"{file}:grade")


# ---- rewards that fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (lambda item, text: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda item, text: item["goal"], "raised KeyError: .*the item has no 'goal'; it has target"),
        (lambda item, text: exit(3), "raised SystemExit: 3"),
        (lambda item, text: math.nan, "gave nan"),
        (lambda item, text: math.inf, "gave inf"),
        (lambda item, text: None, "gave None"),
        (lambda item, text: "good", "gave 'good'"),
        (lambda item, text: 1e308, r"gave 1e\+308"),  # the sum of two is infinite
        (lambda item, text: [1.0], r"gave \[1.0\]"),
    ],
)
def test_a_grade_that_fails_is_named_with_its_item_and_left_out(value, problem):
    told: list[str] = []
    grader = Grader(5.0, told.append)
    assert grader(value, ITEM, "blue") is None
    assert grader(value, ITEM, "blue") is None
    assert grader.failed == 2
    (line,) = told  # said once
    assert re.search(rf"the reward {problem}.* on item 7 \('Name a colour.'\), answer 'blue'", line), line


def test_numbers_of_all_kinds_are_grades():
    grader = Grader(5.0, print)
    assert [grader(lambda item, text, v=v: v, ITEM, "") for v in (True, 0, 0.25, "0.5")] == [1.0, 0.0, 0.25, 0.5]


def test_a_reward_that_hangs_is_stopped_whatever_it_catches(rewards):
    def loops(item, text):
        while True:
            pass

    told: list[str] = []
    grader = Grader(0.05, told.append)
    start = time.monotonic()
    assert grader(load_reward(f"{rewards}:slow"), ITEM, "blue") is None
    assert grader(loops, ITEM, "blue") is None
    assert time.monotonic() - start < 2
    assert "took longer than 0.05 s and was stopped on item 7" in told[0]
    assert grader(lambda item, text: 1.0, ITEM, "") == 1.0


def test_what_a_reward_does_to_its_surroundings_ends_with_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def careless(item, text):
        item.messages[-1]["content"] = "changed"
        item.details.clear()
        os.chdir("/")
        return 1.0

    assert Grader(5.0, print)(careless, ITEM, "") == 1.0
    assert (ITEM.messages[-1]["content"], ITEM["target"]) == ("Name a colour.", "red")
    assert Path.cwd() == tmp_path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("end", ["return 0.0", "raise SystemExit"])
def test_a_reward_that_forks_leaves_one_run(tmp_path, end):
    script = tmp_path / "forks.py"
    script.write_text(
        "import os\nfrom nutshell.tasks.reward import Grader\nfrom nutshell.tasks.task import Item\n\n\n"
        f"def grade(item, text):\n    if os.fork() == 0:\n        {end}\n    return 1.0\n\n\n"
        "value = Grader(5.0, print)(grade, Item(messages=[{'role': 'user', 'content': '?'}]), '')\nos.wait()\nprint(value)\n"
    )
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60).stdout == "1.0\n"


def test_a_file_may_import_its_neighbours_and_define_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_rewards.py").write_text("value = 0.75\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_rewards import value\n\n\n"
        "@dataclass\nclass Rule:\n    worth: float\n\n\ndef grade(item, completion):\n    return Rule(value).worth\n"
    )
    assert Grader(5.0, print)(load_reward(f"{tmp_path / 'mine.py'}:grade"), ITEM, "") == 0.75
