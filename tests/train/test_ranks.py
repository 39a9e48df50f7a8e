"""Two ranks over gloo: the same bits on each after every step, and the same training as on one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rank_processes import run_ranks
from tiny_run import RUNTIME, STEPS, at_step, lines, recipe

from nutshell import checkpoint
from nutshell.plan.plan import for_hardware
from nutshell.plan.record import load_plan
from nutshell.plan.stages import DPOConfig
from nutshell.run.folder import Preempted
from nutshell.train.pipeline import run_stages

SCRIPT = Path(__file__).with_name("ranks.py")


def torchrun(*arguments, ranks=2, timeout=300, script=SCRIPT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=environment)


def losses(folder, stage):
    return [line["loss"] for line in lines(folder, stage) if "loss" in line]


def test_two_ranks_train_as_one_does_and_go_on_where_one_was_stopped(finished, tmp_path, monkeypatch):
    """nc 843, ng 145, mm 701: identical ranks, the trace of one rank, and another number of ranks after a stop."""
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda stage: stage.run.stop.append(15))
        with pytest.raises(Preempted):
            run_stages(recipe(tmp_path / "resumed"), RUNTIME, ("pretrain",))
    assert len(losses(tmp_path / "resumed", "pretrain")) == 3

    folders = f"{tmp_path}/two,{tmp_path}/resumed"
    result = run_ranks(SCRIPT, folders, f"{'+'.join(STEPS)},pretrain", ranks=2, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    for stage, steps in STEPS.items():
        assert checkpoint.latest(tmp_path / "two" / stage).name == f"step-{steps:06d}"
    assert losses(tmp_path / "two", "pretrain") == pytest.approx(losses(finished, "pretrain"), rel=1e-3)
    assert losses(tmp_path / "resumed", "pretrain") == pytest.approx(losses(finished, "pretrain"), rel=1e-3)
    for folder in (tmp_path / "two", tmp_path / "resumed"):
        for ours, theirs in zip(lines(folder, "pretrain"), lines(finished, "pretrain"), strict=True):
            assert ours["step"] == theirs["step"]
            assert ours.get("tokens") == theirs.get("tokens")
            if "eval" in ours:
                assert ours["eval"]["val_bpb"] == pytest.approx(theirs["eval"]["val_bpb"], rel=1e-3)
    for stage in ("midtrain", "sft"):  # their micro-batches have different numbers of targets: still one mean
        assert losses(tmp_path / "two", stage) == pytest.approx(losses(finished, stage), rel=2e-3), stage


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "shard"), [(4, "state"), (2, "weights")])
def test_other_divisions_train_as_one_rank_does(finished, tmp_path, ranks, shard):
    """Four ranks with a row each (two without a problem in RL), and weights divided too: what they save has one form."""
    result = torchrun(tmp_path / "run", "+".join(STEPS), shard, ranks=ranks, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    for stage in ("pretrain", "midtrain", "sft"):
        assert losses(tmp_path / "run", stage) == pytest.approx(losses(finished, stage), rel=2e-3), stage
        ours, theirs = (lines(folder, stage)[-1]["eval"] for folder in (tmp_path / "run", finished))
        assert ours == pytest.approx(theirs, rel=2e-3)
    _, tensors = checkpoint.load_training(checkpoint.latest(tmp_path / "run" / "sft"))
    _, expected = checkpoint.load_training(checkpoint.latest(finished / "sft"))
    assert tensors.keys() == expected.keys()
    assert all(tensors[key].shape == expected[key].shape for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["state", "weights"])
def test_dpo_on_two_ranks_is_that_of_one(tmp_path, shard):
    """Batches of three pairs, so that the ranks never have as many."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n} it is.", "rejected": "I would rather not."} for n in range(7)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = torchrun(tmp_path / "two", "pretrain+midtrain+sft+dpo", shard)
    assert result.returncode == 0, result.stderr[-3000:]
    dpo = DPOConfig(pairs=str(tmp_path / "pairs.jsonl"), batch=3, lr_fraction=0.3)
    asked = recipe(tmp_path / "one")
    run_stages(replace(asked, stages=replace(asked.stages, dpo=dpo)), RUNTIME, ("pretrain", "midtrain", "sft", "dpo"))
    two, one = ([line for line in lines(tmp_path / name, "dpo") if "loss" in line] for name in ("two", "one"))
    assert len(one) == 7
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "margin", "chosen_reward"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-2, abs=2e-3), (ours["step"], name)


def test_another_number_of_ranks_keeps_the_batch_or_is_refused(finished):
    """Silently training on another batch would be worse."""
    plan = load_plan(finished)

    def on(ranks):
        return for_hardware(plan, replace(plan.hardware, world_size=ranks))

    assert on(1) == plan
    two = on(2)
    assert two.micro_batch_size * two.grad_accum_steps * 2 == plan.micro_batch_size * plan.grad_accum_steps
    assert two.hardware.world_size == 2
    with pytest.raises(ValueError, match="tokens_per_step is 512, not divisible by context x ranks = 128 x 3"):
        on(3)


@pytest.mark.slow
def test_when_one_rank_dies_the_others_stop_with_an_error(tmp_path):
    result = torchrun(tmp_path / "run", "pretrain", "state", 3)  # raises TimeoutExpired where they hang
    assert result.returncode != 0
    assert len(losses(tmp_path / "run", "pretrain")) in (2, 3)
