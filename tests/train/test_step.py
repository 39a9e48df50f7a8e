"""The step generator: what one step computes, and what it does when the numbers are not finite."""

import math

import pytest
import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import OptimizerConfig
from nutshell.plan.schedule import Schedule
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.step import MOST_SKIPPED_IN_A_ROW, MicroBatch, TrainingDiverged, train_steps

V, T = 64, 16
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32)


class Training:
    """A tiny model, its optimizer, and fixed random rows."""

    def __init__(self, rows: int = 32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = GPT(ModelConfig(vocab_size=V, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=T))
        self.optimizer = MuonAdamW(group_parameters(self.model, OptimizerConfig(), width=32, tokens_per_step=256))
        self.rows = torch.randint(1, V, (rows, T + 1), generator=torch.Generator().manual_seed(1))
        self.fetched = 0
        self.seen: list[float] = []

    def batches(self, size: int, spoil=lambda loss, number: loss):
        def micro_batch():
            start = self.fetched * size % len(self.rows)
            self.fetched += 1
            rows, number = self.rows[start : start + size], self.fetched
            return MicroBatch(lambda: spoil(self.model(rows[:, :-1], rows[:, 1:]), number), size * T, size * T)

        return micro_batch

    def run(self, micro_batch, *, steps=3, first_step=0, accumulation=1, **more):
        return train_steps(
            self.model, self.optimizer, micro_batch, accumulation=accumulation, schedule=Schedule(), lr_scale=1.0,
            first_step=first_step, steps=steps, runtime=RUNTIME, **more,
        )  # fmt: skip

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_accumulation_equals_one_big_batch():
    whole, parts = Training(), Training()
    steps = zip(whole.run(whole.batches(8)), parts.run(parts.batches(2), accumulation=4), strict=True)
    for one, other in steps:
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert (one.step, one.tokens) == (other.step, other.tokens)
        if one.step == 1:  # later, Adam has blown up the last digits of tiny gradients
            assert one.loss == pytest.approx(other.loss, rel=1e-6)
            for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-8), name


def test_the_first_loss_is_that_of_a_uniform_guess():
    training = Training()
    first = next(iter(training.run(training.batches(8))))
    assert first.loss == pytest.approx(math.log(V), rel=0.02)
    assert (first.step, first.tokens, first.skipped) == (1, 8 * T, False)
    assert first.seconds > 0


def test_the_loss_falls():
    training = Training(rows=4)
    losses = [result.loss for result in training.run(training.batches(4), steps=60)]
    assert losses[-1] < losses[0] - 0.8


def test_steps_end_where_they_should_and_may_start_anywhere():
    training = Training()
    assert [r.step for r in training.run(training.batches(2), first_step=5, steps=8)] == [6, 7, 8]
    assert list(training.run(training.batches(2), first_step=8, steps=8)) == []


def test_learning_rates_follow_the_step_not_the_process():
    whole, resumed = Training(), Training()
    scales = [r.lr_scale for r in whole.run(whole.batches(2), steps=10)]
    assert scales[6:] == [r.lr_scale for r in resumed.run(resumed.batches(2), first_step=6, steps=10)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_and_changes_nothing(value):
    training = Training()
    spoiled = training.batches(2, lambda loss, number: loss * value if number == 2 else loss)
    weights, results = [training.weights()], []
    state = []
    for result in training.run(spoiled, steps=4):
        results.append(result)
        weights.append(training.weights())
        state.append(({k: v.clone() for k, v in training.optimizer.state.items()}, training.optimizer.steps))
    assert [r.skipped for r in results] == [False, True, False, False]
    assert [r.step for r in results] == [1, 2, 3, 4]
    assert same(weights[2], weights[1])
    assert same(state[1][0], state[0][0])
    assert [steps for _, steps in state] == [1, 1, 2, 3]
    assert not same(weights[3], weights[2])
    assert all(torch.isfinite(p).all() for p in weights[-1].values())


def test_a_gradient_that_is_not_finite_skips_the_step_though_the_loss_is_fine():
    """sqrt(0) has a finite value and an infinite slope."""
    training = Training()

    def spoil(loss, number):
        return loss + (loss - loss).sqrt() if number == 2 else loss

    first, second = ((r, training.weights()) for r in training.run(training.batches(2, spoil), steps=2))
    assert (first[0].skipped, second[0].skipped) == (False, True)
    assert math.isfinite(second[0].loss)
    assert not math.isfinite(second[0].grad_norm)
    assert same(first[1], second[1])


def test_one_bad_micro_batch_spoils_its_step_only():
    training = Training()
    spoiled = training.batches(2, lambda loss, number: loss * math.nan if number == 6 else loss)
    assert [r.skipped for r in training.run(spoiled, steps=4, accumulation=4)] == [False, True, False, False]


def test_training_stops_after_too_many_skips_in_a_row_and_says_where_and_why():
    """nc 590: a run that goes NaN must not go on for hours, and must say what it last saw."""
    training = Training()
    spoiled = training.batches(2, lambda loss, number: loss * math.nan if number > 3 else loss)
    results = training.run(spoiled, steps=100, describe=lambda: "Data of the last batch: train-00000.parquet row group 7")
    for _ in range(3 + MOST_SKIPPED_IN_A_ROW - 1):
        next(results)
    with pytest.raises(TrainingDiverged) as caught:
        next(results)
    message = str(caught.value)
    for words in (f"the last {MOST_SKIPPED_IN_A_ROW} steps up to step {3 + MOST_SKIPPED_IN_A_ROW}", "loss nan",
                  "train-00000.parquet row group 7", "--optimizer.matrix-lr"):  # fmt: skip
        assert words in message
    assert all(torch.isfinite(p).all() for p in training.weights().values())


def test_a_good_step_in_between_starts_the_count_again():
    training = Training()
    spoiled = training.batches(2, lambda loss, number: loss * math.nan if number % MOST_SKIPPED_IN_A_ROW else loss)
    results = list(training.run(spoiled, steps=3 * MOST_SKIPPED_IN_A_ROW))
    assert sum(r.skipped for r in results) == 3 * (MOST_SKIPPED_IN_A_ROW - 1)
