"""`nutshell plan` without a run: at once, without data, tokenizer or torch, and refusing what cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nutshell.config import from_dict
from nutshell.plan.estimate import learning_rates
from nutshell.plan.law import load_law
from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import Plan
from nutshell.plan.shape import named_depth
from nutshell.train.optim import group_parameters


@pytest.fixture
def plan(run_command, monkeypatch):
    """Runs `nutshell plan` in an empty folder: (exit code, output, errors)."""
    monkeypatch.delenv("RANK", raising=False)
    return lambda line: run_command(f"plan {line}")


def test_everything_is_told_and_saved(plan):
    code, out, err = plan("--gpu 8xH100 --budget 100usd")
    assert code == 0, err
    for words in ("8xH100, bfloat16, 8 rank(s)", "parameters: embedding", "FLOPs a token", "matrices 0.0", "pretrain  ",
                  "memory    ", "8 GB none", "80 GB ", "an assumed MFU of 45%, $9", "at $24 an hour", "bpb "):  # fmt: skip
        assert words in out
    saved = from_dict(Plan, json.loads(Path("runs/default/plan-8xH100.json").read_text()), "here")
    assert saved == draft_plan(Recipe(gpu="8xH100", budget="100usd"), load_law())
    assert not Path("runs/default/plan.json").exists()


def test_a_draft_needs_no_torch(tmp_path):
    code = """
import sys
from nutshell.cli.main import main
try:
    main(["plan", "--depth", "12", "--gpu", "H100", "--out", sys.argv[1]])
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_without_a_machine_the_time_is_not_known(plan):
    code, out, _ = plan("--depth 12 --json")
    assert code == 0
    found = json.loads(out)
    assert found["forecast"]["seconds"] is None
    assert sum(found["forecast"]["memory"].values()) > 2**30
    code, out, _ = plan("--depth 12")
    assert "Nothing was measured" in out


@pytest.mark.parametrize("wanted", ["20M", "124M", "1.5B"])
def test_the_depth_nearest_to_so_many_parameters(wanted):
    millions = float(wanted[:-1]) * {"M": 1e6, "B": 1e9}[wanted[-1]]
    depth = named_depth(Recipe(params=wanted))

    def distance(depth):
        return abs(sum(draft_plan(Recipe(depth=depth)).parameters.values()) - millions)

    assert distance(depth) <= min(distance(depth + 1), distance(max(1, depth - 1)))
    assert draft_plan(Recipe(params=wanted)).model.depth == depth


BAD = {
    "--gpu 8xH101 --depth 4": "gpu is '8xH101'; accepted: one of H100",
    "--gpu 8xH100": "neither depth nor budget is given",
    "--depth 32 --gpu RTX4060": "does not fit: one row of 2048 tokens takes",
    "--depth 12 --gpu RTX4090 --rows 64": "micro_batch_size is 64, which takes",
    "--budget 100usd": "price of the machine is",
    "--params many": "params is 'many'; accepted: a number above 0",
    "--params 124M --depth 4": "Leave out one",
    "--depth 4 --mfu 2 --gpu H100": "mfu is 2.0; accepted: 0",
    "--depth 4 --scaling nowhere.json": "--scaling nowhere.json does not exist",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(plan, line):
    code, out, err = plan(line)
    assert code == 2
    assert BAD[line] in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in out + err
    assert not list(Path().iterdir())


def test_the_rates_told_are_those_that_are_used():
    from nutshell.model.gpt import GPT

    plan = draft_plan(Recipe(depth=4))
    told = learning_rates(plan.optimizer, plan.model, plan.stages["pretrain"].tokens_per_step)
    tokens = plan.stages["pretrain"].tokens_per_step
    groups = group_parameters(GPT(plan.model), plan.optimizer, width=plan.model.width, tokens_per_step=tokens)
    used = {name: min(group.lr for group in groups if group.row.name == name) for name in {g.row.name for g in groups}}
    assert used == pytest.approx(told)
