"""nutshell rl and nutshell dpo on a model of one's own, with files of one's own: the commands as a user gives them."""

import json
from pathlib import Path

import pytest

from nutshell.metrics import read_metrics

TINY = "--dtype float32 --stages.rl.steps 4 --stages.rl.prompts 4 --stages.rl.samples 4 --stages.rl.max-tokens 8 --eval-items 2"
GRADE = '''
def grade(item, completion):
    """Words that the prompt asks for; two prompts are beyond it."""
    if item["letter"] == "x":
        return 1 / 0
    return float("nan") if item["letter"] == "y" else completion.count(item["letter"]) / 4
'''


@pytest.fixture
def model(finished):
    return finished / "sft"


def test_a_reward_of_ones_own_on_ones_own_prompts(model, tmp_path, run_command):
    (tmp_path / "rewards.py").write_text(GRADE)
    rows = [{"prompt": f"Say {letter}.", "letter": letter} for letter in "etaoxyin"]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"rl --init {model} --prompts asked.jsonl --reward rewards.py:grade --out mine {TINY}"
    code, _, errors = run_command(command)
    assert code == 0, errors
    assert "the reward raised ZeroDivisionError: division by zero on item 4 ('Say x.')" in errors
    assert "the reward gave nan on item 5" in errors
    metrics = read_metrics(tmp_path / "mine")
    steps = [line for line in metrics if line["stage"] == "rl" and "loss" in line]
    assert len(steps) == 4
    assert any(line.get("ungraded", 0) > 0 for line in steps)
    assert any(line["grad_norm"] > 0 for line in steps)
    evals = [line["eval"] for line in metrics if line["stage"] == "rl" and "eval" in line]
    assert all(line.keys() == {"pass@1", "pass@4", "held_out_reward"} for line in evals)  # and no task of the primer
    rollouts = [json.loads(line) for line in (tmp_path / "mine" / "rollouts.jsonl").read_text().splitlines()]
    assert all(row["rewards"] == [None] * 4 for row in rollouts if row["question"] in ("Say x.", "Say y."))
    assert all(None not in row["rewards"] for row in rollouts if row["question"] == "Say e.")
    code, _, errors = run_command("rl --out mine")  # finished: the same run, from its plan
    assert code == 0, errors


def test_pairs_of_ones_own(model, tmp_path, run_command):
    row = {"prompt": "Say e.", "chosen": "e e e", "rejected": "no"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    code, _, errors = run_command(f"dpo --init {model} --pairs pairs.jsonl --out mine --dtype float32 --eval-items 2")
    assert code == 0, errors
    steps = [line for line in read_metrics(tmp_path / "mine") if line["stage"] == "dpo" and "loss" in line]
    assert len(steps) == 3
    assert steps[-1]["margin"] > 0


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("dpo --init {model} --out mine", "dpo learns from pairs of answers, and none are named. Give --pairs FILE"),
        ("dpo --init {model} --pairs bad.jsonl --out mine", "bad.jsonl, line 1: has prompt, chosen, but no rejected"),
        ("dpo --init {model} --pairs none.jsonl --out mine", "none.jsonl does not exist"),
        ("rl --init {model} --reward none.py:grade --out mine", "none.py does not exist; the reward"),
        ("rl --init {model} --prompts none.jsonl --reward none.py:grade --out mine", "does not exist"),
        ("rl --init {model} --tasks humaneval --out mine", "humaneval has no items to train on"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(model, tmp_path, run_command, command, problem):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "?", "chosen": "yes"}\n')
    code, _, errors = run_command(command.format(model=model))
    assert code == 2
    assert problem in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_answers_longer_than_the_context_are_said(model, run_command):
    short = "--stages.rl.steps 1 --stages.rl.prompts 1 --stages.rl.samples 2 --stages.rl.validations 0 --eval-tasks none"
    code, _, errors = run_command(f"rl --init {model} --out mine --dtype float32 {short} --stages.rl.max-tokens 100000")
    assert code == 0, errors
    remarks = (Path("mine") / "metrics.jsonl").read_text()
    assert "stages.rl.max_tokens is 100000; the model's context is" in remarks
