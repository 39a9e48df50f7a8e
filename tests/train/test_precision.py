"""fp16: the loss scale follows overflows, a model learns with it, and a resumed run scales alike."""

import json
import math
from dataclasses import replace

import pytest
import test_step
import torch
from test_step import same
from tiny_run import RUNTIME, at_step, lines, recipe, weights

from nutshell import checkpoint
from nutshell.run.folder import Preempted
from nutshell.train.pipeline import run_stages
from nutshell.train.step import LossScaler

FIRST_SCALE = LossScaler.FIRST_SCALE
HALF = replace(RUNTIME, dtype=torch.float16)


class Training(test_step.Training):
    """On the same rows in every step, in fp16 by default. The scale follows each step; `overflowed` is what `update` returned."""

    def __init__(self, dtype=torch.float16, scaler=None) -> None:
        super().__init__(8, dtype, scaler)

    def run(self, steps, spoil=lambda loss, number: loss, accumulation=1):
        for result in super().run(8, steps=steps, accumulation=accumulation, spoil=spoil):
            self.overflowed = self.scaler.update(result.loss, result.finite)
            yield result


def overflowing(at):
    """The gradient of these micro-batches overflows at any scale above 2, their loss is fine."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.where(grad > 2, math.inf, grad)

    return lambda loss, number: Overflow.apply(loss) if at(number) else loss


def test_other_dtypes_are_not_scaled():
    for dtype in (torch.float32, torch.bfloat16):
        scale = LossScaler.for_dtype(dtype)
        assert (scale.scale, scale.dynamic, scale.state) == (1.0, False, None)
        assert not scale.update(1.0, finite=False)
        assert scale.scale == 1


def test_the_scale_is_divided_out_of_gradients_exactly():
    plain, scaled = Training(torch.float32), Training(torch.float32, LossScaler(scale=2.0**16, dynamic=True))
    for _ in zip(plain.run(3, accumulation=2), scaled.run(3, accumulation=2), strict=True):
        pass
    assert same(plain.weights(), scaled.weights())


def test_a_model_learns_in_fp16_as_in_fp32():
    half, full = Training(), Training(torch.float32)
    losses = [[r.loss for r in t.run(60)] for t in (half, full)]
    assert losses[1][-1] < losses[1][0] - 1
    for a, b in zip(*losses, strict=True):
        assert a == pytest.approx(b, rel=0.02, abs=0.02)
    assert half.scaler.scale == FIRST_SCALE
    assert half.scaler.good_steps == 60


def test_an_overflow_halves_the_scale_and_skips_the_step():
    training = Training()
    results, before = [], None
    for step, result in enumerate(training.run(4, overflowing(lambda number: number == 2)), 1):
        results.append(result)
        if step == 1:
            before = training.weights()
        if step == 2:
            assert same(before, training.weights())
            assert training.scaler.scale == FIRST_SCALE / 2
    assert [r.updated for r in results] == [True, False, True, True]
    assert math.isfinite(results[1].loss)
    assert (training.scaler.scale, training.scaler.good_steps) == (FIRST_SCALE / 2, 2)
    assert not same(before, training.weights())


def test_the_scale_grows_after_enough_good_steps(monkeypatch):
    monkeypatch.setattr(LossScaler, "GROW_EVERY", 3)
    training = Training()
    seen = [training.scaler.scale for _ in training.run(7, overflowing(lambda number: number == 5))]
    assert [s / FIRST_SCALE for s in seen] == [1, 1, 2, 2, 1, 1, 1]


def test_overflows_do_not_count_as_divergence_until_the_scale_is_at_its_lowest():
    training = Training(scaler=LossScaler(scale=2.0**14, dynamic=True))
    updated = [(result.updated, training.overflowed) for result in training.run(14, overflowing(lambda number: True))]
    assert updated == [(False, True)] * 13 + [(True, False)]  # cured at a scale of 2
    endless = Training(scaler=LossScaler(scale=2.0**14, dynamic=True))
    overflowed = [
        endless.overflowed for _ in endless.run(20, lambda loss, number: loss + (loss - loss).sqrt())
    ]  # an infinite slope
    assert overflowed == [True] * 14 + [False] * 6
    assert endless.scaler.scale == 1


def test_a_loss_that_is_no_number_is_no_matter_of_scale():
    training = Training()
    assert not any(training.overflowed for _ in training.run(3, lambda loss, number: loss * math.nan))


def test_resuming_in_fp16_is_exact_in_scale_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScaler, "GROW_EVERY", 2)  # so that the scale moves within a stage
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_stages(recipe(whole), HALF, ("pretrain",))
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda stage: stage.run.stop.append(15))
        with pytest.raises(Preempted):
            run_stages(recipe(broken), HALF, ("pretrain",))
    run_stages(recipe(broken), HALF, ("pretrain",))
    ends = [checkpoint.latest(folder / "pretrain") for folder in (whole, broken)]
    assert weights(ends[0]) == weights(ends[1])
    assert lines(whole, "pretrain") == lines(broken, "pretrain")
    state = json.loads((ends[0] / "training" / "state.json").read_text())
    assert state["loss_scale"]["scale"] != FIRST_SCALE
    assert lines(whole, "pretrain")[-2]["loss_scale"] == state["loss_scale"]["scale"]
