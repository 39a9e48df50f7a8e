"""The plan is a pure function: its rules, its refusals, and that it comes back from disk as it was."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.cli.recipe import flags_with_new_names, with_new_names
from nutshell.config import from_dict
from nutshell.model.flops import parameters_by_group
from nutshell.model.gpt import GPT
from nutshell.plan.cost import RESERVE
from nutshell.plan.estimate import describe
from nutshell.plan.hardware import GIB, Hardware, Timing
from nutshell.plan.mixture import Size
from nutshell.plan.plan import Data, batch_tokens, draft_plan, for_hardware, make_plan, with_micro_batches_of
from nutshell.plan.recipe import RANGES_OR_ZERO, Recipe, seconds
from nutshell.plan.record import Plan
from nutshell.plan.schedule import Schedule
from nutshell.plan.shape import make_shape
from nutshell.plan.stages import StageConfig, Stages
from nutshell.tokenizer.tokenizer import SMALLEST_VOCABULARY


def hardware(seconds_left=600.0, scale=1.0):
    timings = {d: Timing(tokens_per_second=scale * 40_000 / d**2, decode_seconds=0.01 * d) for d in (1, 2, 3, 4, 5, 6)}
    return Hardware(timings=timings, seconds_left=seconds_left)


def test_depth_decides_everything():
    plan = make_plan(Recipe(depth=12), Hardware(), vocab_size=32768)
    assert (plan.model.width, plan.model.heads, plan.model.head_dim, plan.model.context) == (768, 6, 128, 2048)
    tokens = plan.stages["pretrain"].steps * plan.stages["pretrain"].tokens_per_step
    assert tokens == pytest.approx(12 * (sum(plan.parameters[k] for k in ("attention", "mlp", "lm_head"))), rel=0.01)
    assert plan.stages["pretrain"].tokens_per_step == 2**19


def test_every_size_can_be_named():
    recipe = Recipe(depth=3, width=96, heads=6, kv_heads=2, context=128, tokens_per_step=1024, micro_batch_size=4)
    plan = make_plan(recipe, Hardware(), vocab_size=512)
    shape = plan.model
    assert (shape.depth, shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.context) == (3, 96, 6, 2, 16, 128)
    assert (plan.micro_batch_size, plan.grad_accum_steps) == (4, 2)


def test_counted_parameters_are_the_models():
    for depth in (1, 2, 5):
        shape = make_shape(Recipe(), depth, 300)
        assert sum(parameters_by_group(shape).values()) == sum(p.numel() for p in GPT(shape).parameters())


@given(left=st.floats(30, 3600), scale=st.floats(0.05, 20))
def test_a_budget_is_used_and_not_exceeded(left, scale):
    recipe = Recipe(budget="10min", tokens_per_parameter=1.0)
    plan = make_plan(recipe, hardware(left, scale), vocab_size=2048)
    one_step_each = sum(stage.seconds / stage.steps for stage in plan.stages.values() if stage.steps)
    scoring = sum(stage.evaluation_seconds for stage in plan.stages.values())
    # Where scoring alone would take most of it, half of the budget is still for learning.
    expected = max((1 - RESERVE) * left, (1 - RESERVE) * left / 2 + scoring)
    assert plan.forecast.seconds == pytest.approx(expected, abs=2 * one_step_each + 1.0)


def test_a_faster_machine_gets_a_larger_model():
    depths = [make_plan(Recipe(budget="10min"), hardware(600, s), vocab_size=2048).model.depth for s in (0.1, 1, 10)]
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_the_plan_comes_back_from_json_as_it_was():
    plan = make_plan(Recipe(budget="10min"), hardware(), vocab_size=2048)
    assert from_dict(Plan, json.loads(json.dumps(plan.to_dict())), "plan.json") == plan


def test_small_horizons_take_small_batches():
    assert batch_tokens(3e6) == 4096
    assert batch_tokens(1.3e9) == 2**19


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "neither depth nor budget"),
        ({"depth": 4, "tokens_per_step": 1000}, "tokens_per_step"),
        ({"depth": 4, "micro_batch_size": 3, "tokens_per_step": 4096}, "micro_batch_size"),
        ({"depth": 4, "width": 100}, "width"),
        ({"depth": 4, "width": 256, "heads": 4, "kv_heads": 3}, "kv_heads"),
    ],
)
def test_what_cannot_be_is_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        make_plan(Recipe(**changes), Hardware(), vocab_size=2048)


@pytest.mark.parametrize(
    "changes",
    [{"depth": -1}, {"vocab_size": 100}, {"budget": "soon"}, {"budget": "1s"}, {"eval_items": 0}, {"tokens_per_parameter": 0.0},
     {"keep_checkpoints": 0}, {"damaged_checkpoint": "ignore"}, {"damaged_shards": "x"}],
)  # fmt: skip
def test_recipes_refuse_impossible_values(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Recipe(**changes)


def test_the_least_vocabulary_is_the_tokenizers():
    """The plan knows of no tokenizer, so it repeats the number."""
    assert RANGES_OR_ZERO["vocab_size"][0] == SMALLEST_VOCABULARY


def test_budgets_are_read():
    assert [seconds(x) for x in ("", "90s", "8min", "1.5h")] == [0, 90, 480, 5400]


@given(steps=st.integers(1, 5000), warmup=st.integers(0, 100))
def test_schedules_stay_in_their_bounds(steps, warmup):
    schedule = replace(Schedule(), warmup_steps=warmup)
    scales = [schedule.lr_scale(step, steps) for step in range(steps)]
    assert all(0 < s <= 1 for s in scales)
    assert max(scales) > 0.3
    assert all(0.85 <= schedule.momentum(step, steps) <= 0.97 for step in range(steps))


def test_f9_stages_read_their_conversations_a_few_times_at_most():
    big = draft_plan(Recipe(budget="100usd", gpu="8xH100"))
    for name in ("midtrain", "sft"):
        assert 0 < big.stages[name].epochs <= 4
        assert [part.rows for part in big.stages[name].parts] == [200_000]
    assert "warning" not in describe(big).split("sft")[0].split("midtrain")[1]
    named = replace(Stages(), sft=StageConfig(steps=5000))
    assert "warning: sft reads primer" in describe(draft_plan(Recipe(depth=20, gpu="H100", stages=named)))
    # A user's own file counts with the primer's share of it, and is not known to a draft.
    own = Data(conversations={"own.jsonl": Size(1000, 1e5)})
    plan = make_plan(Recipe(depth=2, sft="own.jsonl"), Hardware(), vocab_size=512, data=own)
    assert plan.stages["sft"].epochs <= 3 + plan.stages["sft"].tokens_per_step / 1e5
    assert [(part.name, part.share) for part in plan.stages["sft"].parts] == [("own", 0.8), ("primer", 0.2)]
    assert draft_plan(Recipe(depth=2, sft="own.jsonl")).stages["sft"].epochs is None


def test_f9_time_that_conversations_do_not_take_is_pretrainings():
    few = draft_plan(Recipe(budget="100usd", gpu="8xH100", primer_conversations=1000))
    many = draft_plan(Recipe(budget="100usd", gpu="8xH100", primer_conversations=10_000_000))
    assert few.forecast.seconds == pytest.approx(many.forecast.seconds, rel=0.01)
    assert few.stages["sft"].steps < many.stages["sft"].steps


def test_f13_a_plan_goes_on_upon_another_machine_with_the_same_batches():
    plan = make_plan(Recipe(depth=12), Hardware(threads=2, memory_bytes=64 * GIB), vocab_size=32768)
    gpu = Hardware(device="cuda", dtype="bfloat16", threads=16, memory_bytes=24 * GIB)
    moved = for_hardware(plan, gpu)
    assert (moved.hardware.device, moved.hardware.dtype, moved.hardware.threads) == ("cuda", "bfloat16", 16)
    assert moved.stages == plan.stages
    step_tokens = plan.stages["pretrain"].tokens_per_step
    assert moved.micro_batch_size * moved.grad_accum_steps * moved.model.context == step_tokens
    assert for_hardware(moved, gpu) == moved
    # What a real step was seen to fit with stays, on the same machine.
    probed = with_micro_batches_of(moved, 1)
    assert for_hardware(probed, replace(gpu, threads=4)).micro_batch_size == 1
    # A size that was named for one machine does not stop another.
    named = make_plan(Recipe(depth=12, micro_batch_size=64), Hardware(), vocab_size=32768)
    assert for_hardware(named, replace(gpu, memory_bytes=12 * GIB)).micro_batch_size < 64
    with pytest.raises(ValueError, match="not divisible"):
        for_hardware(plan, replace(gpu, world_size=7))
    # One that is asked for now wins, or is refused.
    again = for_hardware(moved, gpu, replace(moved.recipe, micro_batch_size=2))
    assert (again.micro_batch_size, again.stages) == (2, plan.stages)
    with pytest.raises(ValueError, match="does not divide"):
        for_hardware(moved, gpu, replace(moved.recipe, micro_batch_size=3))


def test_old_names_are_understood_for_a_version_with_a_note(capsys):
    assert with_new_names({"rows": 4, "stages": {"sft": {"lr_scale": 0.5}}}) == {
        "micro_batch_size": 4,
        "stages": {"sft": {"lr_fraction": 0.5}},
    }
    flags = ["recipes/x", "--rows", "4", "--stages.sft.lr-scale=0.5", "--lr_scale", "1", "--depth", "3", "rows"]
    assert flags_with_new_names(flags) == [
        "recipes/x", "--micro-batch-size", "4", "--stages.sft.lr-fraction=0.5", "--lr-fraction", "1", "--depth", "3", "rows",
    ]  # fmt: skip
    assert capsys.readouterr().err.count("is called") == 5


def test_a_plan_says_how_often_it_saves():
    assert "a checkpoint every 20 min (" in describe(draft_plan(Recipe(depth=4, save_every_seconds=1200.0)))
    assert "tokens; no checkpoints but at these and the last" in describe(draft_plan(Recipe(depth=4, save_every_seconds=1e9)))
