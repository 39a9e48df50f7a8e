"""What a budget pays for besides steps, by hand."""

from dataclasses import replace

import pytest

from nutshell.plan.cost import (
    COPYING_BYTES_PER_SECOND,
    RESERVE,
    SAVING_BYTES_PER_SECOND,
    evaluation_seconds,
    rl_step_seconds,
    saving_seconds,
    saving_share,
)
from nutshell.plan.hardware import Timing
from nutshell.plan.plan import Hardware, draft_plan, make_plan, refit, training_seconds
from nutshell.plan.recipe import Recipe, RLConfig
from nutshell.train.calibrate import LONGEST_TIMING, first_depth

TIMING = Timing(
    tokens_per_second=1000, decode_seconds=0.02, reply_seconds=0.01, forward_tokens_per_second=4000, startup_seconds=3
)


def test_a_step_of_rl_is_decoding_and_one_update():
    rl = RLConfig(prompts=4, samples=5, max_tokens=100)
    # 35 tokens on average: 35 decoding steps, and 20 answers of 35 tokens to learn.
    assert rl_step_seconds(rl, TIMING) == pytest.approx(35 * 0.02 + 20 * 35 / 1000)


def test_evaluations_are_counted_by_their_tokens():
    recipe = Recipe(eval_items=64)
    after_sft = 2 * 34 * 0.01 + 64 * 180 / 4000  # sums and letters at 34 tokens a reply; facts and prompts to read
    assert evaluation_seconds(recipe, TIMING, "sft") == pytest.approx(after_sft)
    base = 2 * 128 * 0.01 + 64 * 180 / 4000 + 4 * 65_536 / 4000  # replies that never end, and four validations
    assert evaluation_seconds(recipe, TIMING, "pretrain") == pytest.approx(base)
    assert evaluation_seconds(recipe, TIMING, "pretrain", world_size=4) == pytest.approx(base - 3 * 65_536 / 4000)
    files = replace(recipe, eval_data="somewhere")
    assert evaluation_seconds(files, TIMING, "sft") == pytest.approx(after_sft + 128 * 0.01 + 64 * 390 / 4000)


def test_what_was_not_measured_is_reckoned_from_training():
    recipe, bare = Recipe(eval_items=64), Timing(tokens_per_second=1000, decode_seconds=0.02)
    whole = replace(bare, forward_tokens_per_second=3000, reply_seconds=0.02 * 64 / 128)
    assert evaluation_seconds(recipe, bare, "pretrain") == evaluation_seconds(recipe, whole, "pretrain")


def test_checkpoints_cost_what_they_write():
    assert saving_seconds(int(SAVING_BYTES_PER_SECOND), "sft") == 12
    assert saving_seconds(int(SAVING_BYTES_PER_SECOND), "pretrain") == 48  # with each validation
    parameters = int(COPYING_BYTES_PER_SECOND)
    assert saving_share(Recipe(save_every_seconds=120), parameters) == 0.1
    assert saving_share(Recipe(save_every_seconds=1), parameters) == 1.0


def test_the_parts_of_a_budget_add_up():
    recipe = Recipe(budget="1h", depth=2, save_every_seconds=100.0)
    hardware = Hardware(timings={2: TIMING}, seconds_left=3600)
    plan = make_plan(recipe, hardware, vocab_size=512)
    parameters = sum(plan.parameters.values())
    scoring = sum(evaluation_seconds(recipe, TIMING, stage) for stage in plan.stages)
    opening = sum(3 + saving_seconds(parameters, stage) for stage in plan.stages)
    training = training_seconds(recipe, hardware, plan.model)
    assert training * (1 + saving_share(recipe, parameters)) + scoring + opening == pytest.approx(3600 * (1 - RESERVE))
    step = plan.stages["pretrain"].tokens_per_step / 1000
    assert plan.forecast.seconds == pytest.approx(3600 * (1 - RESERVE), abs=4 * step)
    assert plan.stages["pretrain"].steps == int(training * 0.45 / step)


def test_a_later_stage_is_fitted_to_what_is_left():
    recipe = Recipe(budget="1h", depth=2)
    plan = make_plan(recipe, Hardware(timings={2: TIMING}, seconds_left=3600), vocab_size=512)
    scoring = plan.stages["rl"].evaluation_seconds
    for slowdown in (1.0, 1.5):
        left = (scoring + plan.stages["rl"].seconds / 2) * slowdown / (1 - RESERVE)
        fitted = refit(plan, "rl", seconds_left=left, slowdown=slowdown)
        assert fitted.stages["rl"].steps == pytest.approx(plan.stages["rl"].steps / 2, abs=1)
        assert fitted.forecast.seconds == pytest.approx(plan.forecast.seconds - plan.stages["rl"].seconds / 2, rel=1e-3)


def test_a_named_machine_takes_its_data_sheet_and_an_assumed_share():
    plan = draft_plan(Recipe(depth=12, gpu="8xH100", mfu=0.5))
    stage = plan.stages["pretrain"]
    flops = stage.steps * stage.tokens_per_step * plan.flops_per_token
    parameters, steps = sum(plan.parameters.values()), flops / (8 * 989e12 * 0.5)
    expected = steps * (1 + saving_share(plan.recipe, parameters)) + saving_seconds(parameters, "pretrain")
    assert stage.seconds == pytest.approx(expected)
    assert plan.forecast.usd == pytest.approx(plan.forecast.seconds / 3600 * 24)


def test_dollars_are_hours_at_a_price():
    assert Recipe(budget="48usd", gpu="8xH100").budget_seconds() == 7200
    assert Recipe(budget="48usd", usd_per_hour=12).budget_seconds() == 4 * 3600
    assert Recipe(budget="1h", usd_per_hour=12).budget_seconds() == 3600
    with pytest.raises(ValueError, match="price of the machine is unknown: give --usd-per-hour 24, or --gpu 8xH100"):
        Recipe(budget="100usd")


def test_a_gpu_is_not_timed_at_depths_far_below_its_budget():
    hardware = Hardware(device="cuda", dtype="bfloat16", seconds_left=4 * 3600, world_size=8)
    found = first_depth(Recipe(budget="4h"), hardware, 32768, 989e12)
    assert 8 <= found < draft_plan(Recipe(budget="4h", gpu="8xH100")).model.depth
    assert first_depth(Recipe(budget="10s"), replace(hardware, seconds_left=10), 32768, 1e12) == 1


def test_timing_takes_as_long_as_it_is_told(monkeypatch):
    from tiny_run import RUNTIME

    from nutshell.train import calibrate as measure

    shape = measure.make_shape(Recipe(width=64, context=32), 1, 300)
    few, forward = measure.step_seconds(shape, 1, RUNTIME, Recipe())
    assert len(few) == measure.WARMUP_STEPS + measure.TIMED_STEPS
    assert 0 < forward
    many, _ = measure.step_seconds(shape, 1, RUNTIME, Recipe(), at_least=10 * max(few))
    assert sum(many[measure.WARMUP_STEPS :]) >= 10 * max(few)
    assert LONGEST_TIMING <= 10


def test_this_machine_is_measured_once_more_at_the_depth_it_takes():
    from tiny_run import RUNTIME

    from nutshell.train.calibrate import measure
    from nutshell.train.prepare import hardware_of

    rl = RLConfig(share=0.1, prompts=2, samples=2, max_tokens=8)
    recipe = Recipe(budget="10s", width=64, context=32, vocab_size=300, tokens_per_step=64, eval_items=2)
    recipe = replace(recipe, tokens_per_parameter=1e-3, stages=replace(recipe.stages, rl=rl))
    found = measure(replace(recipe, depth=2), RUNTIME, hardware_of(RUNTIME), 300, 10.0)
    timing = found.timings[2]
    assert list(found.timings) == [2]
    assert min(timing.tokens_per_second, timing.decode_seconds, timing.reply_seconds, timing.forward_tokens_per_second) > 0
    stage = make_plan(replace(recipe, depth=2), found, vocab_size=300).stages["pretrain"]
    assert stage.seconds == pytest.approx(
        stage.steps * 64 / timing.tokens_per_second + timing.startup_seconds, rel=0.05, abs=0.05
    )
    small = replace(hardware_of(RUNTIME), memory_bytes=1 << 16)
    with pytest.raises(ValueError, match="depth 2, width 64 does not fit"):
        measure(replace(recipe, depth=2), RUNTIME, small, 300, 10.0)
