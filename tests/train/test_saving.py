"""Saving beside the training: what may be pending and when, and what is kept."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from tiny_run import EVERY_STEP, RUNTIME, STEPS, at_step, kept, lines, recipe, result, weights

from nutshell import checkpoint
from nutshell.run import checkpoints as saving
from nutshell.run.checkpoints import Writer
from nutshell.run.folder import Preempted
from nutshell.train import scoring
from nutshell.train.build import open_stage
from nutshell.train.pipeline import run_stages


@pytest.fixture
def patient(monkeypatch):
    """No save that is due is passed over: tests count them."""
    monkeypatch.setattr(Writer, "busy", False)


@pytest.fixture
def slow_disk(monkeypatch):
    """Writes wait for the event that is returned, and are listed by their step when they begin."""
    gate, began, write = threading.Event(), [], checkpoint.write_snapshot

    def slow(folder, snapshot):
        began.append(snapshot.meta["step"])
        assert gate.wait(60)
        return write(folder, snapshot)

    monkeypatch.setattr(checkpoint, "write_snapshot", slow)
    yield gate, began
    gate.set()


def saved(folder, stage="pretrain"):
    return [step for step, _ in checkpoint.checkpoints(folder / stage)]


# ---- the thread ----------------------------------------------------------------------------------------------------


def test_one_write_at_a_time_and_its_error_is_raised_once():
    gate, log = threading.Event(), []

    def write(name):
        assert gate.wait(60)
        log.append(name)
        if name == "bad":
            raise OSError(28, "No space left on device")

    with Writer() as writer:
        writer.start(lambda: write("good"))
        assert writer.busy
        writer.check()  # a write that is not over is no error
        threading.Timer(0.05, gate.set).start()
        writer.start(lambda: write("bad"))  # waits for the first
        assert log[0] == "good"
        while writer.busy:
            time.sleep(0.001)
        with pytest.raises(OSError, match="No space left"):
            writer.check()
        writer.check()
        writer.wait()
    assert log == ["good", "bad"]


def test_a_writer_ends_when_nothing_is_pending_and_passes_on_the_error_of_the_last_write():
    def fail():
        time.sleep(0.05)
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Writer() as writer:
        writer.start(fail)

    def crash():
        with Writer() as writer:
            writer.start(fail)
            raise KeyError

    with pytest.raises(KeyError):  # what ended the run is the error to report
        crash()


def test_what_is_written_is_the_state_at_the_call_whatever_training_does_meanwhile(opened, slow_disk):
    gate, _ = slow_disk
    stage = open_stage(opened, "pretrain")
    stage.step = 3
    weight, moment = stage.model.lm_head.weight, stage.optimizer.state["lm_head.weight.momentum"]
    before = weight.detach().clone()
    moment.fill_(0.25)
    with opened.writer:
        stage.save({"row": 7})
        with torch.no_grad():
            weight.add_(1)
            moment.fill_(0.5)
        gate.set()
    model, _, _ = checkpoint.load_model(opened.folder / "pretrain" / "step-000003")
    assert torch.equal(model.lm_head.weight, before)
    _, tensors = checkpoint.load_training(opened.folder / "pretrain" / "step-000003")
    assert torch.equal(tensors["lm_head.weight.momentum"], torch.full_like(moment, 0.25))


def test_while_a_write_is_in_flight_saves_by_time_are_passed_over_and_the_last_step_waits(begun, slow_disk, monkeypatch):
    """Midtraining has no validations: it saves by time, and at its end."""
    gate, began = slow_disk
    folder = begun("midtrain")
    at_step(monkeypatch, STEPS["midtrain"], lambda stage: gate.set())
    run_stages(recipe(folder, **EVERY_STEP), RUNTIME, ("midtrain",))
    assert began == [1, STEPS["midtrain"]]
    assert saved(folder, "midtrain") == began


def test_no_evaluation_begins_before_the_write_is_complete(begun, monkeypatch):
    """nc 427, 446, 551. An evaluation may crash the process, not only raise: what it follows must be on the disk."""
    folder, write, seen = begun("pretrain"), checkpoint.write_snapshot, []

    def slow(folder, snapshot):
        time.sleep(0.1)
        return write(folder, snapshot)

    def looks(task, model, tok, progress):
        seen.append(saved(folder)[-1])
        return result(0.5)

    from nutshell.train import pretrain

    def bpb(*arguments, **more):
        seen.append(saved(folder)[-1])
        return measure(*arguments, **more)

    measure = pretrain.bits_per_byte
    monkeypatch.setattr(pretrain, "bits_per_byte", bpb)
    monkeypatch.setattr(checkpoint, "write_snapshot", slow)
    monkeypatch.setattr(scoring, "evaluate", looks)
    run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert seen == [2, 4, 6, 7, 7, 7, 7, 7]  # three validations, the last one, four tasks


def test_a_run_never_ends_before_its_last_write_whatever_ended_it(begun, slow_disk, monkeypatch):
    gate, began = slow_disk
    folder = begun("midtrain")

    def crash(stage):
        threading.Timer(0.2, gate.set).start()
        raise RuntimeError("anything")

    at_step(monkeypatch, 3, crash)
    with pytest.raises(RuntimeError, match="anything"):
        run_stages(recipe(folder, **EVERY_STEP), RUNTIME, ("midtrain",))
    assert began == saved(folder, "midtrain") == [1]


def test_a_signal_waits_for_the_write_in_flight_saves_and_leaves(finished, begun, slow_disk, monkeypatch):
    gate, began = slow_disk
    folder = begun("sft")

    def stop(stage):
        threading.Timer(0.2, gate.set).start()
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_step(patch, 3, stop)
        with pytest.raises(Preempted, match="stopped after step 3 of sft; everything is saved"):
            run_stages(recipe(folder, **EVERY_STEP), RUNTIME, ("sft",))
    assert began == saved(folder, "sft") == [1, 3]
    assert (folder / "preempted").read_text() == "sft step 3\n"
    run_stages(recipe(folder), RUNTIME, ("sft",))
    assert weights(folder / "sft" / "step-000005") == weights(finished / "sft" / "step-000005")
    assert lines(folder, "sft") == lines(finished, "sft")


def test_a_full_disk_ends_the_run_at_the_next_step_with_one_message(begun, monkeypatch):
    folder, write = begun("midtrain"), checkpoint.write_snapshot
    steps = []

    def full(path, snapshot):
        if snapshot.meta["step"] == 2:
            raise OSError(f"cannot save {path}: No space left on device")
        return write(path, snapshot)

    at_step(monkeypatch, 2, lambda stage: stage.run.writer.wait())  # so that step 2 is saved
    at_step(monkeypatch, 3, lambda stage: stage.run.writer._pending.exception())  # and has failed by now
    at_step(monkeypatch, 4, lambda stage: steps.append("went on"))
    monkeypatch.setattr(checkpoint, "write_snapshot", full)
    with pytest.raises(OSError, match=r"cannot save .*step-000002: No space left"):
        run_stages(recipe(folder, **EVERY_STEP), RUNTIME, ("midtrain",))
    assert saved(folder, "midtrain") == [1]
    assert steps == []


def test_a_full_disk_at_the_last_step_is_no_success(begun, monkeypatch):
    folder = begun("midtrain")

    def full(path, snapshot):
        time.sleep(0.1)
        raise OSError(f"cannot save {path}: No space left on device")

    monkeypatch.setattr(checkpoint, "write_snapshot", full)
    with pytest.raises(OSError, match="cannot save"):
        run_stages(recipe(folder), RUNTIME, ("midtrain",))
    assert not [line for line in lines(folder, "midtrain") if "eval" in line]
    assert not (folder / "preempted").exists()


# ---- what is kept --------------------------------------------------------------------------------------------------


def scores(monkeypatch, values):
    """Validation gives these numbers, one after the other."""
    found = iter(values)
    monkeypatch.setattr("nutshell.train.pretrain.bits_per_byte", lambda *_, **__: next(found))


def test_the_newest_k_and_the_best_are_kept_and_older_ones_keep_their_weights_only(begun, patient, monkeypatch):
    folder = begun("pretrain")
    scores(monkeypatch, [2.0, 3.0, 3.5, 2.5])  # after steps 2, 4, 6, 7
    run_stages(recipe(folder, keep_checkpoints=3, **EVERY_STEP), RUNTIME, ("pretrain",))
    assert kept(folder) == [(2, False), (5, False), (6, True), (7, True)]
    assert json.loads((folder / "pretrain" / "best.json").read_text()) == {"step": 2, "val_bpb": 2.0}
    for _, path in checkpoint.checkpoints(folder / "pretrain"):
        checkpoint.verify(path)
        checkpoint.load(path)
        assert (path / "training").exists() == checkpoint.has_training(path)
    assert checkpoint.latest(folder).name == "step-000007"  # nutshell.load(run) means the newest


def test_the_best_changes_with_the_score_and_is_not_kept_twice(begun, patient, monkeypatch):
    folder = begun("pretrain")
    scores(monkeypatch, [4.0, 3.0, 2.0, 1.0])
    run_stages(recipe(folder, keep_checkpoints=1, **EVERY_STEP), RUNTIME, ("pretrain",))
    assert kept(folder) == [(6, True), (7, True)]  # 6 was the best when 7 was saved
    assert saving.best(folder / "pretrain") == {"step": 7, "val_bpb": 1.0}


def test_validated_steps_are_saved_however_long_the_interval(begun, monkeypatch):
    folder = begun("pretrain")
    scores(monkeypatch, [4.0, 3.0, 5.0, 3.5])
    run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert kept(folder) == [(4, False), (6, True), (7, True)]


def test_the_manifest_says_ranks_and_data(finished):
    metas = {stage: checkpoint.read_manifest(checkpoint.latest(finished / stage))["meta"] for stage in STEPS}
    assert all(meta["world_size"] == 1 for meta in metas.values())
    state, _ = checkpoint.load_training(checkpoint.latest(finished / "pretrain"))
    assert metas["pretrain"]["data"] == state["loader"]["data"]
    assert metas["pretrain"]["data"] != metas["sft"]["data"]
    assert metas["rl"]["data"] is None


def test_a_folder_whose_training_state_is_half_deleted_is_cleared_by_the_next_pruning(finished, tmp_path):
    stage = tmp_path / "sft"
    for step in (1, 2, 3):
        shutil.copytree(checkpoint.latest(finished / "sft"), stage / f"step-{step:06d}")
    manifest = (stage / "step-000001" / "manifest.json").read_bytes()
    checkpoint.drop_training(stage / "step-000001")
    (stage / "step-000001" / "training").mkdir()
    (stage / "step-000001" / "training" / "state.json").write_text("{}")
    checkpoint.verify(stage / "step-000001")
    saving.prune(stage, 3)
    assert not (stage / "step-000001" / "training").exists()
    assert (stage / "step-000001" / "manifest.json").read_bytes() != manifest
    assert kept(tmp_path, "sft") == [(1, False), (2, True), (3, True)]


def test_what_can_be_resumed_is_never_deleted(finished, tmp_path):
    """Somebody put newer folders with weights only beside it."""
    stage = tmp_path / "sft"
    for step in (1, 2, 3, 4):
        shutil.copytree(checkpoint.latest(finished / "sft"), stage / f"step-{step:06d}")
        if step > 1:
            checkpoint.drop_training(stage / f"step-{step:06d}")
    saving.prune(stage, 2)
    assert kept(tmp_path, "sft") == [(1, True), (3, False), (4, False)]


def test_weights_alone_are_not_taken_for_a_stage_to_begin_anew(begun, finished):
    """Training over them without a word would lose them."""
    folder = begun("pretrain")
    shutil.copytree(finished / "pretrain" / "step-000007", folder / "pretrain" / "step-000002")
    checkpoint.drop_training(folder / "pretrain" / "step-000002")
    with pytest.raises(ValueError, match=r"step-000002 holds weights only, no training state to go on from\. Delete .*pretrain"):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))
