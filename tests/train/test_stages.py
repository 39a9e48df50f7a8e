"""Every stage goes on exactly where it was interrupted, loses nothing to an evaluation that fails, and learns what it should."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from tiny_run import RUNTIME, STEPS, lines, recipe, weights

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.run.checkpoints import Writer
from nutshell.run.folder import Preempted
from nutshell.tokenizer import Tokenizer
from nutshell.train import scoring
from nutshell.train.pipeline import run_stages
from nutshell.train.stage import Stage, TrainingDiverged


class Crash(Exception):
    """Whatever may happen."""


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(step, how): the next start of a stage ends at that step, once."""

    def plan(step: int, how: str) -> None:
        record, write = Stage.record, checkpoint.write_snapshot
        done = []

        def interrupted(self, result, sources, **more):
            record(self, result, sources, **more)
            if self.step == step and how != "full disk" and not done:
                done.append(step)
                if how == "signal":
                    self.run.stop.append(15)
                elif how == "crash":
                    raise Crash

        def failing(folder, snapshot):
            if how == "full disk" and snapshot.meta["step"] >= step and not done:
                done.append(step)
                raise OSError(28, os.strerror(28))
            return write(folder, snapshot)

        monkeypatch.setattr(Stage, "record", interrupted)
        monkeypatch.setattr(checkpoint, "write_snapshot", failing)
        monkeypatch.setattr(Writer, "busy", False)  # no save that is due is passed over: tests count them

    return plan


INTERRUPTIONS = [(2, "signal", 1e9), (1, "crash", 1e9), (4, "crash", 1e-9), (3, "full disk", 1e-9), (4, "signal", 1e-9)]


@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize(("step", "how", "save_every"), INTERRUPTIONS)
def test_resuming_is_exact_to_the_bit(finished, begun, interrupt, stage, step, how, save_every):
    """ng 158, mm 556, tt 809: a run that was interrupted cannot be told from one that was not."""
    folder = begun(stage)
    interrupt(step, how)
    settings = recipe(folder, save_every_seconds=save_every)
    with pytest.raises({"signal": Preempted, "crash": Crash, "full disk": OSError}[how]):
        run_stages(settings, RUNTIME, (stage,))
    stopped_at = [step for step, _ in checkpoint.checkpoints(folder / stage)]
    assert stopped_at[-1:] == {"signal": [step], "crash": [] if save_every > 1 else [step - 1], "full disk": [step - 1]}[how]
    assert (folder / "preempted").exists() == (how == "signal")
    assert not list((folder / stage).glob(".tmp-*"))
    if how == "crash":
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "' + stage)  # a line that kill -9 tore

    run_stages(settings, RUNTIME, (stage,))
    last = f"{stage}/step-{STEPS[stage]:06d}"
    assert weights(folder / last) == weights(finished / last)
    assert lines(folder, stage) == lines(finished, stage)
    assert not (folder / "preempted").exists()


def test_a_finished_run_is_passed_over(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("nutshell.train.pipeline.TRAIN", {})  # what any stage that begins is looked up in
    run_stages(recipe(folder), RUNTIME)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("stage", STEPS)
def test_saving_precedes_evaluation_so_that_a_crash_in_it_costs_nothing(finished, begun, monkeypatch, stage):
    """nc 427, 446, 551: hours of training must not hang on the evaluation after it."""
    folder = begun(stage)
    last = f"{stage}/step-{STEPS[stage]:06d}"

    def crash(*_, **__):
        assert checkpoint.read_manifest(folder / last)["meta"]["step"] == STEPS[stage]
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "evaluate", crash)
        with pytest.raises(MemoryError):
            run_stages(recipe(folder), RUNTIME, (stage,))
    written = (folder / last / "model.safetensors").stat().st_mtime_ns
    run_stages(recipe(folder), RUNTIME, (stage,))
    assert (folder / last / "model.safetensors").stat().st_mtime_ns == written
    assert weights(folder / last) == weights(finished / last)
    assert lines(folder, stage) == lines(finished, stage)


def test_a_signal_ends_an_evaluation_at_once(finished, begun, monkeypatch):
    """The grace period of a cluster is shorter than a long evaluation."""
    folder = begun("sft")

    def slow(task, model, tok, progress):
        progress(1, 100)
        os.kill(os.getpid(), signal.SIGTERM)
        progress(2, 100)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "evaluate", slow)
        with pytest.raises(Preempted, match="stopped after step 5 of sft; everything is saved"):
            run_stages(recipe(folder), RUNTIME, ("sft",))
    assert (folder / "preempted").read_text() == "sft step 5\n"
    run_stages(recipe(folder), RUNTIME, ("sft",))
    assert lines(folder, "sft") == lines(finished, "sft")


def test_a_stop_between_saving_and_validating_loses_no_point_of_the_curve(finished, begun, interrupt):
    points = [line["step"] for line in lines(finished, "pretrain") if "eval" in line]
    assert points == [2, 4, 6, 7]
    folder = begun("pretrain")
    interrupt(4, "signal")
    with pytest.raises(Preempted):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert [line["step"] for line in lines(folder, "pretrain") if "eval" in line] == [2]
    run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert lines(folder, "pretrain") == lines(finished, "pretrain")


def test_a_step_that_is_skipped_is_counted_in_the_metrics_and_survives_a_resume(begun, interrupt, monkeypatch):
    folder = begun("sft")
    from nutshell.model.gpt import GPT

    forward, calls = GPT.forward, []

    def spoiled(self, *arguments):
        calls.append(1)
        return forward(self, *arguments) * (math.nan if len(calls) == 3 else 1)  # two micro-batches a step: step 2

    monkeypatch.setattr(GPT, "forward", spoiled)
    run_stages(recipe(folder), RUNTIME, ("sft",))
    steps = [line for line in lines(folder, "sft") if "loss" in line]
    assert [line.get("skipped", False) for line in steps] == [False, True, False, False, False]
    assert steps[1]["loss"] is None


def test_divergence_names_step_data_and_the_last_good_checkpoint(begun, monkeypatch):
    """nc 590, 803: what to look at, and where to go back to."""
    folder = begun("pretrain")
    from nutshell.model.gpt import GPT

    forward, calls = GPT.forward, []

    def spoiled(self, *arguments):
        calls.extend([1] * torch.is_grad_enabled())  # validation does not count
        return forward(self, *arguments) * (math.nan if len(calls) > 6 else 1)

    monkeypatch.setattr(GPT, "forward", spoiled)
    monkeypatch.setattr("nutshell.train.stage.MOST_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(TrainingDiverged) as caught:
        run_stages(recipe(folder, save_every_seconds=1e-9), RUNTIME, ("pretrain",))
    message = str(caught.value)
    for words in ("up to step", "train-00000.parquet row group", f"The last good checkpoint is {folder}/pretrain/step-0000"):
        assert words in message
    saved = checkpoint.latest(folder / "pretrain")
    assert str(saved) in message
    model, _ = checkpoint.load(saved)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("validations", "stopped_at"), [([], 2), ([1.0, 1.0, 1.0], STEPS["pretrain"])])
def test_weights_without_a_finite_validation_are_an_error(begun, monkeypatch, validations, stopped_at):
    """At the end of a stage, and in its middle: what follows would be paid for in vain."""
    folder, values = begun("pretrain"), iter([*validations, math.nan])
    monkeypatch.setattr("nutshell.train.pretrain.bits_per_byte", lambda *arguments, **more: next(values))
    with pytest.raises(TrainingDiverged, match=f"val_bpb after step {stopped_at} of 7 of pretrain is nan: the weights"):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))
    assert len([line for line in lines(folder, "pretrain") if "eval" in line]) == len(validations)


# ---- what a stage starts from --------------------------------------------------------------------------------------


def test_a_stage_without_steps_is_passed_over_by_the_next(tmp_path):
    """Midtraining may be left out: fine-tuning then starts from pretraining."""
    settings = recipe(tmp_path / "run")
    object.__setattr__(settings.stages.midtrain, "steps", 0)
    object.__setattr__(settings.stages.midtrain, "share", 0.0)
    run_stages(settings, RUNTIME, ("pretrain", "midtrain", "sft"))
    assert not (tmp_path / "run" / "midtrain").exists()
    assert checkpoint.latest(tmp_path / "run" / "sft").name == "step-000005"


def test_a_stage_does_not_start_from_one_that_is_not_done(begun, interrupt):
    folder = begun("midtrain")
    interrupt(2, "signal")
    with pytest.raises(Preempted):
        run_stages(recipe(folder), RUNTIME, ("midtrain",))
    with pytest.raises(ValueError, match=r"sft starts from the end of midtrain, which stands at step 2 of 5.*nutshell midtrain"):
        run_stages(recipe(folder), RUNTIME, ("sft",))
    assert not (folder / "sft").exists()


def test_another_tokenizer_in_the_run_folder_is_refused(begun):
    folder = begun("midtrain")
    Tokenizer.train(["something else altogether " * 50], vocab_size=300).save(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer is not the one that the checkpoints .* were trained with"):
        run_stages(recipe(folder), RUNTIME, ("midtrain",))


def test_a_checkpoint_of_another_shape_is_refused(begun, tmp_path):
    folder = begun("midtrain")
    plan = json.loads((folder / "plan.json").read_text())
    plan["model"]["heads"] = plan["model"]["kv_heads"] = 2
    plan["model"]["head_dim"] = 32
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"another shape than its plan\.json"):
        run_stages(recipe(folder), RUNTIME, ("midtrain",))


def test_other_data_under_a_stage_that_goes_on_is_refused(begun, interrupt, finished):
    folder = begun("pretrain")
    interrupt(2, "signal")
    with pytest.raises(Preempted):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))
    shards = folder / "data" / "train-00000.parquet"
    shutil.copy(folder / "data" / "val-00000.parquet", shards)
    with pytest.raises(ValueError, match="the data stream cannot be resumed: data was"):
        run_stages(recipe(folder), RUNTIME, ("pretrain",))


# ---- what a stage learns from --------------------------------------------------------------------------------------


def test_conversations_longer_than_the_context_train_without_nan(begun, tmp_path):
    """nc 590, 817: every conversation is longer than a row; the loss stays finite and the stage ends."""
    words = " ".join(f"word{i}" for i in range(200))
    file = tmp_path / "long.jsonl"
    rows = [[("user", f"hi {i}"), ("assistant", words)] for i in range(20)] + [
        [("user", words), ("assistant", f"{i}")] for i in range(20)
    ]
    for_file = ({"messages": [{"role": role, "content": text} for role, text in row]} for row in rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in for_file))
    settings = recipe(tmp_path / "mine", sft=str(file))
    object.__setattr__(settings.stages.sft, "primer_share", 0.0)
    run_stages(settings, RUNTIME, ("pretrain", "midtrain", "sft"))
    losses = [line["loss"] for line in lines(tmp_path / "mine", "sft") if "loss" in line]
    assert len(losses) == STEPS["sft"]
    assert all(math.isfinite(loss) for loss in losses)


def test_a_tiny_text_of_ones_own_trains_through_many_epochs(tmp_path):
    """nc 360, 620: one small file yields disjoint train and val parts, and the stream goes round."""
    file = tmp_path / "mine.txt"
    file.write_text("\n\n".join(f"Paragraph {i} is about the number {i * i}." for i in range(120)))
    run_stages(recipe(tmp_path / "run", data=str(file), tokens_per_step=2048), RUNTIME, ("pretrain",))
    steps = [line for line in lines(tmp_path / "run", "pretrain") if "loss" in line]
    assert len(steps) * 2048 > 3 * len(file.read_text()) / 2  # at two characters or more to a token
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [line for line in lines(tmp_path / "run", "pretrain") if "eval" in line][-1]["eval"]["val_bpb"] > 0


def test_contexts_shorter_than_the_questions_still_run_through(tmp_path):
    """Problems of RL and of the evaluation are longer than 16 tokens: they lose their beginning, the run goes on."""
    run_stages(recipe(tmp_path / "run", context=16, micro_batch_size=0), RUNTIME)
    assert checkpoint.latest(tmp_path / "run" / "rl").name == "step-000005"


def test_rl_draws_other_problems_at_each_step_and_the_same_ones_after_a_resume(begun, interrupt, monkeypatch):
    seeds, draw = [], primer.rl_problems
    monkeypatch.setattr(primer, "rl_problems", lambda seed, *rest: seeds.append(seed) or draw(seed, *rest))
    folder = begun("rl")
    interrupt(2, "crash")
    with pytest.raises(Crash):
        run_stages(recipe(folder, save_every_seconds=1e-9), RUNTIME, ("rl",))
    run_stages(recipe(folder), RUNTIME, ("rl",))
    assert seeds == [seeds[0], seeds[0] + 1, *(seeds[0] + step for step in range(1, STEPS["rl"]))]
    rewards = [line["reward"] for line in lines(folder, "rl") if "loss" in line]
    assert any(0 < reward < 1 for reward in rewards)
