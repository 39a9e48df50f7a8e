"""Where damaged checkpoints and shards lead, and that a resumed stage cannot be told from an uninterrupted one."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import EVERY_STEP, RUNTIME, STEPS, at_step, kept, lines, recipe, weights

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.data.shards import open_shards, write_shards
from nutshell.files import write_json
from nutshell.run import checkpoints as saving
from nutshell.run.checkpoints import Writer
from nutshell.run.folder import Preempted
from nutshell.train.pipeline import run_stages


@pytest.fixture
def damaged(begun, monkeypatch):
    """A pretraining that stopped after step 5, whose newest checkpoint lost a bit of its weights."""
    folder = begun("pretrain")
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "busy", False)
        at_step(patch, 5, lambda stage: stage.run.stop.append(15))
        with pytest.raises(Preempted):
            run_stages(recipe(folder, **EVERY_STEP), RUNTIME, ("pretrain",))
    assert kept(folder)[-2:] == [(4, True), (5, True)]
    flip(folder / "pretrain" / "step-000005" / "model.safetensors")
    return folder


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used_when_asked(damaged, finished, capsys):
    folder = damaged
    with pytest.raises(
        ValueError, match=r"step-000005/model.safetensors has another sha256.*--damaged-checkpoint previous goes on from"
    ):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert kept(folder)[-1] == (5, True)
    run_stages(recipe(folder, damaged_checkpoint="previous"), RUNTIME, ("pretrain",))
    assert "step-000005/model.safetensors has another sha256" in capsys.readouterr().err
    assert (folder / "pretrain" / "damaged-step-000005").is_dir()
    assert weights(folder / "pretrain" / "step-000007") == weights(finished / "pretrain" / "step-000007")
    assert lines(folder, "pretrain") == lines(finished, "pretrain")


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(damaged):
    flip(damaged / "pretrain" / "step-000004" / "training" / "state.safetensors")
    before = sorted(damaged.rglob("*"))
    with pytest.raises(ValueError, match=r"no checkpoint in .*pretrain is whole. Delete that folder to begin the stage anew"):
        run_stages(recipe(damaged, damaged_checkpoint="previous"), RUNTIME, ("pretrain",))
    assert sorted(damaged.rglob("*")) == before


def test_going_back_behind_the_best_forgets_it(damaged):
    write_json(damaged / "pretrain" / "best.json", {"step": 5, "val_bpb": 0.1})
    run_stages(recipe(damaged, damaged_checkpoint="previous"), RUNTIME, ("pretrain",))
    assert saving.best(damaged / "pretrain")["step"] in (6, 7)


def flip_many(file):
    content = bytearray(file.read_bytes())
    content[1000 : len(content) - 3000 : 500] = bytes(255 - byte for byte in content[1000 : len(content) - 3000 : 500])
    file.write_bytes(content)


DAMAGES = {"flipped": flip_many, "truncated": lambda file: file.write_bytes(file.read_bytes()[:2000]), "gone": os.unlink}


@pytest.mark.parametrize("choice", ["stop", "skip"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_shards_that_break_in_the_middle_of_a_run_stop_it_or_are_skipped_as_asked(tmp_path, monkeypatch, capsys, damage, choice):
    """Never silently: each is named, and what was skipped is counted in the metrics."""
    data = write_shards(primer.documents(1, 250_000), tmp_path / "data", shard_characters=50_000, rows_per_group=4)
    before = open_shards(data).fingerprint("train")
    settings = recipe(tmp_path / "run", data=str(data), tokens_per_step=2048, micro_batch_size=4, damaged_shards=choice)
    shards = sorted(data.glob("train-*.parquet"))
    at_step(monkeypatch, 2, lambda stage: [DAMAGES[damage](file) for file in shards[1:]])
    if choice == "stop":
        with pytest.raises(ValueError, match=r"train-0000[1-9]\.parquet, row group \d+ cannot be read .*damaged"):
            run_stages(settings, RUNTIME, ("pretrain",))
    else:
        run_stages(settings, RUNTIME, ("pretrain",))
    output = capsys.readouterr().err
    steps = [line for line in lines(tmp_path / "run", "pretrain") if "loss" in line]
    if choice == "skip":
        assert [line["step"] for line in steps] == list(range(1, STEPS["pretrain"] + 1))
        assert output.count("skipped: shard ") == steps[-1]["damaged_blocks"] > 1
        state, _ = checkpoint.load_training(checkpoint.latest(tmp_path / "run"))
        assert state["loader"]["data"] == before  # not of what the damage left
    else:
        assert not any("damaged_blocks" in line for line in steps)


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STEPS)
def test_no_stage_depends_on_or_moves_a_global_random_generator(finished, begun, monkeypatch, stage):
    """So there is none to save: every draw comes from (seed, step) alone, and a resume need not restore anything."""
    folder = begun(stage)
    states = []

    def scramble(stage):
        random.seed(stage.step)
        np.random.seed(stage.step)
        torch.manual_seed(stage.step)
        states.append(now())

    def now():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def check(stage):
        assert now() == states[0]

    at_step(monkeypatch, 1, scramble)
    at_step(monkeypatch, 3, check)
    run_stages(recipe(folder), RUNTIME, (stage,))
    last = f"{stage}/step-{STEPS[stage]:06d}"
    assert weights(folder / last) == weights(finished / last)
    assert lines(folder, stage) == lines(finished, stage)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_compiled_run_that_is_resumed_cannot_be_told_from_one_that_was_not(tmp_path, monkeypatch, one_thread):
    """tt 809, 1136: compiling must not depend on where a run starts.

    On one thread: with more, even two uninterrupted compiled runs differ in the last bits.
    """
    compiled = replace(RUNTIME, compiled=True)
    run_stages(recipe(tmp_path / "whole"), compiled, ("pretrain",))
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda stage: stage.run.stop.append(15))
        with pytest.raises(Preempted):
            run_stages(recipe(tmp_path / "resumed"), compiled, ("pretrain",))
    torch.compiler.reset()  # as in a process of its own
    run_stages(recipe(tmp_path / "resumed"), compiled, ("pretrain",))
    last = "pretrain/step-000007"
    assert weights(tmp_path / "resumed" / last) == weights(tmp_path / "whole" / last)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
