"""The step generator: what one step computes, and what it does when the numbers are not finite."""

import math
from dataclasses import replace

import pytest
import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import OptimizerConfig
from nutshell.plan.schedule import Schedule
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, next_token_loss, train_step

V, T = 64, 16
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32)


class Training:
    """A tiny model, its optimizer, and fixed random rows."""

    def __init__(self, rows: int = 32, dtype: torch.dtype = torch.float32, scaler: LossScaler | None = None) -> None:
        torch.manual_seed(0)
        config = ModelConfig(vocab_size=V, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=T)
        self.model = GPT(config).set_precision(dtype)
        self.optimizer = MuonAdamW(group_parameters(self.model, OptimizerConfig(), width=32, tokens_per_step=256), dtype)
        self.rows = torch.randint(1, V, (rows, T + 1), generator=torch.Generator().manual_seed(1))
        self.runtime, self.scaler, self.fetched = replace(RUNTIME, dtype=dtype), scaler or LossScaler.for_dtype(dtype), 0

    def run(self, size: int, *, steps=3, accumulation=1, spoil=lambda loss, number: loss, spread=range(T), **more):
        """Steps on micro-batches of `size` rows; `spoil(loss, number)` changes the loss of micro-batch `number`, and only
        the targets in `spread` are learned."""
        first = self.fetched

        def loss_of(model, batch):
            self.fetched += 1
            return spoil(next_token_loss(model, batch), self.fetched)

        for step in range(steps):
            places = [(first + step * accumulation + i) * size % len(self.rows) for i in range(accumulation)]
            batches = [self.batch(self.rows[place : place + size], spread) for place in places]
            rates = Schedule().at(step, steps)
            yield train_step(self.model, self.optimizer, batches, rates, self.runtime, self.scaler, loss_of=loss_of, **more)

    @staticmethod
    def batch(rows: torch.Tensor, spread) -> MicroBatch:
        targets = torch.full_like(rows[:, 1:], -1)
        targets[:, list(spread)] = rows[:, 1:][:, list(spread)]
        return MicroBatch(rows[:, :-1], targets, int((targets >= 0).sum()))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_accumulation_equals_one_big_batch():
    whole, parts = Training(), Training()
    for step, (one, other) in enumerate(zip(whole.run(8), parts.run(2, accumulation=4), strict=True), 1):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert (one.tokens, one.targets) == (other.tokens, other.targets)
        if step == 1:  # later, Adam has blown up the last digits of tiny gradients
            assert one.loss == pytest.approx(other.loss, rel=1e-6)
            for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-8), name


def test_the_first_loss_is_that_of_a_uniform_guess():
    first = next(Training().run(8))
    assert first.loss == pytest.approx(math.log(V), rel=0.02)
    assert (first.tokens, first.targets, first.updated) == (8 * T, 8 * T, True)
    assert first.seconds > 0


def everything(training: Training) -> dict[str, torch.Tensor]:
    """Weights and optimizer state."""
    state = {name: value.clone() for name, value in training.optimizer.state.items()}
    return {**training.weights(), **state, "steps": torch.tensor(training.optimizer.steps)}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_f1_a_step_with_nothing_to_learn_changes_nothing(accumulation):
    """F1: zero gradients and stale momentum made Muon take a whole step."""
    training = Training()
    list(training.run(4, steps=2))
    before = everything(training)
    (result,) = training.run(4, steps=1, accumulation=accumulation, spread=())
    assert (result.updated, result.finite, result.targets) == (False, True, 0)
    assert math.isnan(result.loss)
    assert same(before, everything(training))
    (result,) = training.run(4, steps=1)
    assert result.updated
    assert not same(before, everything(training))


def test_f1_a_parameter_without_a_gradient_stays():
    """F1: matrices without a gradient moved by the momentum of their group."""
    training = Training()
    list(training.run(4, steps=2))
    for p in training.model.parameters():
        p.grad = torch.ones_like(p)
    left_out = [training.model.blocks[0].mlp.up.weight, training.model.lm_head.weight, training.model.smear_lambda]
    before = [p.detach().clone() for p in left_out]
    for p in left_out:
        p.grad = None
    moved = training.model.blocks[1].mlp.up.weight.detach().clone()
    training.optimizer.step(lr=1.0, momentum=0.9, decay=1.0)
    assert all(torch.equal(p, old) for p, old in zip(left_out, before, strict=True))
    assert not torch.equal(moved, training.model.blocks[1].mlp.up.weight)


def test_gradients_are_clipped_to_their_norm():
    plain, clipped = Training(), Training()
    (one,), (other,) = plain.run(4, steps=1), clipped.run(4, steps=1, clip_norm=0.01)
    assert one.grad_norm == pytest.approx(other.grad_norm)  # what is logged is the norm before clipping
    norms = [torch.stack([p.grad.norm() for p in t.model.parameters() if p.grad is not None]).norm() for t in (plain, clipped)]
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_and_changes_nothing(value):
    training = Training()
    before, states, results = everything(training), [], []
    for result in training.run(2, steps=4, spoil=lambda loss, number: loss * value if number == 2 else loss):
        results.append(result)
        states.append(everything(training))
    assert [r.updated for r in results] == [True, False, True, True]
    assert same(states[1], states[0])
    assert not same(states[0], before)
    assert not same(states[2], states[1])
    assert all(torch.isfinite(p).all() for p in states[-1].values())


def test_a_gradient_that_is_not_finite_skips_the_step_though_the_loss_is_fine():
    """sqrt(0) has a finite value and an infinite slope."""
    training = Training()
    spoil = lambda loss, number: loss + (loss - loss).sqrt() if number == 2 else loss  # noqa: E731
    first, second = ((r, training.weights()) for r in training.run(2, steps=2, spoil=spoil))
    assert (first[0].updated, second[0].updated) == (True, False)
    assert math.isfinite(second[0].loss)
    assert not math.isfinite(second[0].grad_norm)
    assert same(first[1], second[1])


def test_one_bad_micro_batch_spoils_its_step_only():
    spoil = lambda loss, number: loss * math.nan if number == 6 else loss  # noqa: E731
    assert [r.updated for r in Training().run(2, steps=4, accumulation=4, spoil=spoil)] == [True, False, True, True]
