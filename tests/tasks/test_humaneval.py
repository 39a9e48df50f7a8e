"""HumanEval: code is taken from a reply as people write it, and its tests run in the sandbox."""

import json
import os
from pathlib import Path

import pytest

from nutshell.infer.sandbox import Sandbox, SandboxError
from nutshell.tasks import load_task
from nutshell.tasks.humaneval import program

PROMPT = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """ Sum of the numbers. """\n'
ROW = {
    "prompt": PROMPT,
    "canonical_solution": "    return sum(numbers)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 6\n    assert candidate([]) == 0\n",
    "entry_point": "total",
}
REPLIES = {
    "the body alone": ("    return sum(numbers)\n", True),
    "a block with the function": (f"Sure!\n```python\n{PROMPT}    return sum(numbers)\n```\nIt adds them.", True),
    "a block without its imports": ("```\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```", True),
    "an open block": ("```python\ndef total(numbers):\n    return sum(numbers)", True),
    "wrong": ("    return len(numbers)\n", False),
    "no code": ("I do not know that.", False),
    "ends the tests": ("    import os\n    os._exit(0)\n", False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "humaneval").mkdir()
    (folder / "humaneval" / "HumanEval.jsonl").write_text(json.dumps(ROW) + "\n")
    return folder


@pytest.fixture(scope="module")
def task(folder):
    try:
        Sandbox.open()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")
    return load_task("humaneval", data_folder=folder)


@pytest.mark.parametrize("name", REPLIES)
def test_replies_are_run_and_graded(task, name):
    reply, right = REPLIES[name]
    assert task.grade(task.items[0], reply) == right
    assert "sandbox" in task.notes[0]


def test_the_shipped_solutions_are_right(task):
    data = Path(os.environ.get("NUTSHELL_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "eval"
    if not (data / "humaneval").is_dir():
        pytest.skip("no benchmark data beside the repository (NUTSHELL_DATA)")
    real = load_task("humaneval", limit=5, data_folder=data)
    assert [real.grade(item, item.solution) for item in real.items] == [1.0] * 5


def test_a_row_of_another_kind_is_named(tmp_path, task):
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl").write_text(json.dumps({**ROW, "test": None}) + "\n")
    with pytest.raises(ValueError, match="line 1: accepted: JSON lines with prompt, test and entry_point"):
        load_task("humaneval", data_folder=tmp_path)
    assert program(task.items[0], "x = 1").startswith(PROMPT)
