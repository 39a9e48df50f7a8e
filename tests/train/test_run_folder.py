"""A run folder: its lock, its signals, and how a stage's state comes back from it."""

import json
import os
import shutil
import signal

import pytest
import torch
from tiny_run import RUNTIME, recipe

from nutshell import checkpoint
from nutshell.train.pipeline import STAGES, run_stages
from nutshell.train.prepare import open_run
from nutshell.train.stage import open_stage


def test_a_second_job_on_the_run_folder_is_refused(opened):
    message = r"another job is working in .*run\. Wait for it, stop it, or give another --out"
    with pytest.raises(ValueError, match=message), open_run(opened.plan.recipe, RUNTIME):
        pass
    assert (opened.folder / "plan.json").exists()


def test_a_run_that_is_over_gives_its_lock_back(tmp_path):
    for _ in range(2):
        with open_run(recipe(tmp_path / "run"), RUNTIME):
            pass


def test_signals_are_given_back_after_the_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with open_run(recipe(tmp_path / "run"), RUNTIME) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop == [signal.SIGTERM, signal.SIGINT]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_failed_preparation_leaves_no_folder_behind(tmp_path):
    file = tmp_path / "late.jsonl"
    file.write_text('{"text": "one"}\n{"words": "x"}\n')
    with pytest.raises(ValueError, match="line 2: no column 'text'"):
        run_stages(recipe(tmp_path / "run", data=str(file)), RUNTIME)
    assert not (tmp_path / "run").exists()


def test_the_stages_of_the_pipeline_are_those_of_checkpoints():
    assert tuple(STAGES) == checkpoint.STAGES


def test_a_stage_opens_with_the_state_that_was_saved(opened):
    stage = open_stage(opened, "pretrain")
    stage.step, stage.seconds = 3, 1.5
    stage.optimizer.steps = 3
    next(iter(stage.optimizer.state.values())).fill_(0.25)
    stage.save({"row": 7})
    stage.settle()
    again = open_stage(opened, "pretrain")
    assert (again.step, again.optimizer.steps, again.loader_state) == (3, 3, {"row": 7})
    assert again.seconds >= 1.5
    assert all(torch.equal(again.optimizer.state[key], value) for key, value in stage.optimizer.state.items())


def test_a_run_of_an_older_version_is_refused_by_name_and_its_models_open(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "old")
    plan = json.loads((tmp_path / "old" / "plan.json").read_text())
    del plan["format"]
    (tmp_path / "old" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"format 1, this one trains by 3.*give another --out"):
        run_stages(recipe(tmp_path / "old"), RUNTIME, ("rl",))
    checkpoint.load(tmp_path / "old")
