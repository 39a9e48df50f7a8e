"""A run folder: its lock, its signals, and how a stage's state comes back from it."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import RUNTIME, recipe

from nutshell import checkpoint
from nutshell.cli.recipe import with_shape_of
from nutshell.data.shards import prepare_shards
from nutshell.train.build import open_stage
from nutshell.train.examples import examples_for
from nutshell.train.pipeline import TRAIN, run_stages
from nutshell.train.prepare import open_run
from nutshell.train.prepare_tokenizer import prepare_tokenizer


def test_a_second_job_on_the_run_folder_is_refused(opened):
    message = r"another job is working in .*run\. Wait for it, stop it, or give another --out"
    with pytest.raises(ValueError, match=message), open_run(opened.plan.recipe, RUNTIME):
        pass
    assert (opened.folder / "plan.json").exists()


def test_a_run_that_is_over_gives_its_lock_back(tmp_path):
    for _ in range(2):
        with open_run(recipe(tmp_path / "run"), RUNTIME):
            pass


def test_a_run_folder_that_links_to_nothing_is_named(tmp_path):
    """As where a disk is not mounted: "File exists" said nothing."""
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    with pytest.raises(FileNotFoundError, match=r"runs is a link to .*disk, which is not there. Is its disk mounted"):
        run_stages(recipe(tmp_path / "runs" / "one"), RUNTIME)
    assert not (tmp_path / "disk").exists()


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
    assert tuple(TRAIN) == checkpoint.STAGES


def test_a_stage_opens_with_the_state_that_was_saved(opened):
    stage = open_stage(opened, "pretrain")
    stage.step, stage.seconds = 3, 1.5
    stage.optimizer.steps = 3
    next(iter(stage.optimizer.state.values())).fill_(0.25)
    stage.save({"row": 7})
    stage.wait_for_save()
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


# ---- what a run was made from --------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path) -> Path:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(f"Document {i} tells of the number {i} and of {i * i}." * 3 for i in range(1500)))
    return file


@pytest.fixture
def chats(tmp_path) -> Path:
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello to you."}]
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(50)))
    return file


def test_f32_a_run_goes_on_with_its_own_copy(tmp_path, text, chats, capsys):
    """F32: text and conversations that moved, grew or are gone stop no later stage; another text in their place is refused."""
    settings = recipe(tmp_path / "run", data=str(text), sft=str(chats))
    run_stages(settings, RUNTIME, ("pretrain",))
    moved, new_chats = text.rename(tmp_path / "b.txt"), chats.rename(tmp_path / "d.jsonl")
    run_stages(replace(settings, data=str(moved), sft=str(new_chats)), RUNTIME, ("midtrain",))
    assert "--data" not in capsys.readouterr().err
    new_chats.unlink()
    with open_run(settings, RUNTIME) as run:
        assert len(examples_for(run, "sft")[0]) >= 50
    assert "is no longer there since the run was planned" in capsys.readouterr().err
    with moved.open("a") as file:
        file.write("More of it.")
    with open_run(settings, RUNTIME):
        pass
    with (
        pytest.raises(ValueError, match=r"was planned with data = .*a\.txt.*, now it is .*b\.txt"),
        open_run(replace(settings, data=str(moved)), RUNTIME),
    ):
        pass


def test_f31_a_run_below_its_own_data_is_no_input(tmp_path, text):
    """F31: --data . --out runs/a, the second command too, and a second run beside the first."""
    for name in ("runs/a", "runs/a", "runs/b"):
        with open_run(recipe(tmp_path / name, data=str(tmp_path)), RUNTIME) as run:
            files = json.loads((run.data / "manifest.json").read_text())["source"]["files"]
            assert [file for file, _ in files] == ["a.txt"]


def test_f31_a_failed_start_does_not_stand_in_the_way(tmp_path):
    """F34 (31): nothing was trained, so the advice of the error can be followed in the same folder."""
    with open_run(recipe(tmp_path / "run"), RUNTIME) as run:
        assert run.plan.model.context == 128
    with open_run(recipe(tmp_path / "run", context=32), RUNTIME) as run:
        assert run.plan.model.context == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 600}, "was made with vocab_size 512, now it is 600"),
        ({"architecture": "portable"}, "splits text by another pattern than qwen2"),
    ],
)
def test_f34_an_old_tokenizer_of_other_settings_is_refused_by_name(opened, changes, words):
    """F34 (6)."""
    with pytest.raises(ValueError, match=words):
        prepare_tokenizer(replace(opened.plan.recipe, **changes), RUNTIME, opened.data)


def test_f34_a_tokenizer_of_another_text_is_refused_by_name(tmp_path, opened, text):
    other = prepare_shards(text, tmp_path / "other", seed=42)
    with pytest.raises(ValueError, match="was trained on another text"):
        prepare_tokenizer(opened.plan.recipe, RUNTIME, other)


def test_f34_finished_weights_train_further_in_a_new_run(finished, tmp_path):
    """F34 (48): any stage of a new run begins with another run's weights, shape and tokenizer."""
    for stage in ("pretrain", "sft"):
        asked = with_shape_of(recipe(tmp_path / stage, init_from=str(finished)), str(finished))
        with open_run(asked, RUNTIME) as run:
            begun = open_stage(run, stage)
            known, tok, _ = checkpoint.load_model(checkpoint.find(finished))
            assert run.tok.fingerprint == tok.fingerprint
            assert all(torch.equal(a, b) for a, b in zip(begun.model.parameters(), known.parameters(), strict=True))
    with pytest.raises(ValueError, match="has depth = 1, the recipe asks for 3"):
        with_shape_of(recipe(tmp_path / "c", depth=3), str(finished))
