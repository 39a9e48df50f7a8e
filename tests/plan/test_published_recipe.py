"""The rates, batches and drawn weights are those of the public record that docs/recipe.md and docs/design.md name.

The oracle is that record, written out here once more: nanochat's settings at a width of 768 and 2^19 tokens a step, and the
formulas of the papers.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.estimate import describe
from nutshell.plan.groups import PARAMETER_GROUPS, SMALL_BATCH, peak_lr
from nutshell.plan.hardware import Hardware
from nutshell.plan.plan import make_plan
from nutshell.plan.recipe import OptimizerConfig, Recipe
from nutshell.plan.schedule import Schedule

PUBLISHED = {  # rate, grows with the width's -1/2, with the batch's 1/2, betas, weight decay
    "lm_head": (0.008, True, True, (0.8, 0.96), 0.01),
    "embedding": (0.3, True, True, (0.8, 0.995), 0.001),
    "value embeddings": (0.15, True, True, (0.8, 0.995), 0.01),
    "residual scales": (0.005, False, True, (0.8, 0.95), 0.05),
    "embedding scales": (0.5, False, True, (0.96, 0.95), 0.0),
    "smear, backout": (0.2, False, False, (0.8, 0.95), 0.0),
    "matrices": (0.02, False, True, None, None),
}


@given(width=st.integers(64, 4096), tokens=st.integers(SMALL_BATCH + 1, 2**23))
def test_rates_follow_width_and_batch(width, tokens):
    groups = {group.name: group for group in PARAMETER_GROUPS}
    for name, (rate, with_width, with_batch, betas, decay) in PUBLISHED.items():
        expected = rate * (width / 768) ** (-0.5 * with_width) * math.sqrt(tokens / 2**19) ** with_batch
        assert peak_lr(groups[name], OptimizerConfig(), width=width, tokens_per_step=tokens) == pytest.approx(expected, rel=1e-12)
        if betas is not None:
            assert (groups[name].betas, groups[name].weight_decay) == (betas, decay)


@pytest.mark.parametrize("depth", [12, 16, 20, 24, 26, 32])
def test_horizon_batch_and_decay_are_those_of_the_papers(depth):
    """D = 12 P; B = 2^round(log2(2^19 (D / D12)^0.383)) of arXiv 2505.13738; 0.28 sqrt(B / 2^19) D12 / D of arXiv 2405.13698."""

    def matrices(depth):  # attention 4 n^2, MLP 8 n^2, gates of values 12 numbers for each key head; the head V n
        n = 64 * depth
        n += -n % 128
        return depth * 12 * n * n + depth // 2 * 12 * (n // 128) + 32768 * n

    for ratio in (8, 12):
        plan = make_plan(Recipe(depth=depth, tokens_per_parameter=ratio), Hardware(), vocab_size=32768)
        stage = plan.stages["pretrain"]
        horizon, reference = ratio * matrices(depth), 12 * matrices(12)
        batch = 2 ** round(math.log2(2**19 * (horizon / reference) ** 0.383))
        assert stage.tokens_per_step == batch
        assert stage.steps == horizon // batch
        decay = 0.28 * math.sqrt(batch / 2**19) * reference / horizon
        assert plan.optimizer.weight_decay == pytest.approx(decay, rel=1e-3)  # of the tokens of whole steps
        assert plan.model.windows() == [2048 if i % 4 == 3 or i == depth - 1 else 512 for i in range(depth)]


@settings(max_examples=40)
@given(steps=st.integers(3200, 100_000), at=st.floats(0, 1))
def test_the_schedules_of_long_runs_are_the_published_ones(steps, at):
    """Rate: 40 steps up, constant, linear over the last 65% to 0.05. Momentum: 0.85, 0.97 from step 400 on, 0.90 at the end."""
    step = min(steps - 1, int(at * steps))
    rates, down = Schedule().at(step, steps), round(0.65 * steps)
    falling = max(0, step - (steps - down)) / down
    lr = min((step + 1) / 40, 1 - 0.95 * falling)
    momentum = 0.85 + 0.12 * min(1, step / 400) - 0.07 * falling
    assert tuple(rates) == pytest.approx((lr, momentum, (1 + math.cos(math.pi * step / steps)) / 2), rel=1e-12)


@settings(max_examples=5)
@given(depth=st.integers(3, 6), seed=st.integers(0, 99))
def test_drawn_weights_have_the_published_spread(depth, seed):
    config = ModelConfig(vocab_size=512, depth=depth, width=128, heads=2, kv_heads=2, head_dim=64, context=64)
    model = GPT(replace(config, smear=bool(seed % 2)))
    model.initialize(torch.Generator().manual_seed(seed))
    n, zero, uniform = 128**-0.5, (0.0, 0.0), math.sqrt(3)
    expected = {  # standard deviation, largest magnitude (0: no bound)
        "embedding": (0.8, 0.0), "lm_head": (0.001, 0.0), "value_embeddings": (n, uniform * n), "q": (n, uniform * n),
        "k": (n, uniform * n), "v": (n, uniform * n), "up": (0.4 * n, 0.4 * uniform * n), "out": zero, "down": zero,
    }  # fmt: skip
    seen = set()
    for name, weight in model.named_parameters():
        kind = next((part for part in name.split(".")[::-1] if part in expected), None)
        if kind:
            seen.add(kind)
            std, bound = expected[kind]
            assert weight.std().item() == pytest.approx(std, rel=0.03)
            assert abs(weight.mean().item()) <= 0.03 * std
            assert not bound or weight.abs().max() <= bound * (1 + 1e-6)
        elif name.endswith("gate.weight"):
            assert 0 <= weight.min() <= weight.max() <= 0.02
    assert seen == set(expected)
    assert model.backout.item() == pytest.approx(0.2)
    for scale, (first, last) in ((model.residual_scale, (1.15, 1.05)), (model.embedding_scale, (0.20, 0.05))):
        wanted = [first + (last - first) * layer / (depth - 1) for layer in range(depth)]
        assert scale.tolist() == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=30)
@given(steps=st.integers(1, 3000), asked=st.integers(0, 500))
def test_f16_the_warm_up_that_is_told_is_the_one_taken(steps, asked):
    """F16: it was clamped without a word."""
    recipe = Recipe(depth=1, tokens_per_step=2048, schedule=Schedule(warmup_steps=asked))
    recipe = replace(recipe, stages=replace(recipe.stages, pretrain=replace(recipe.stages.pretrain, steps=steps)))
    plan = make_plan(recipe, Hardware(), vocab_size=300)
    flat = replace(plan.schedule, warmdown_fraction=0.0)
    taken = next((step for step in range(steps) if flat.at(step, steps).lr == 1.0), steps - 1)
    told = re.search(r"warm-up (\d+)(.*)", describe(plan))
    assert told is not None
    assert int(told[1]) == (taken + 1 if asked else 0)
    assert (str(asked) in told[2]) == (asked != int(told[1]))
