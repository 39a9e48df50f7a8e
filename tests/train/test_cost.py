"""What a budget pays for besides steps, by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.plan.cost import (
    COPYING_BYTES_PER_SECOND,
    RESERVE,
    SAVING_BYTES_PER_SECOND,
    evaluation_seconds,
    rl_step_seconds,
    save_interval,
    saving_seconds,
    saving_share,
    validation,
)
from nutshell.plan.hardware import GIB, Hardware, Timing
from nutshell.plan.plan import Data, draft_plan, make_plan, refit, stage_seconds
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.plan.stages import RLConfig
from nutshell.train import calibrate
from nutshell.train.calibrate import LONGEST_TIMING, first_depth, measure, probe_micro_batch

TIMING = Timing(
    tokens_per_second=1000, decode_seconds=0.02, reply_seconds=0.01, forward_tokens_per_second=4000, startup_seconds=3
)


def test_a_step_of_rl_is_decoding_and_one_update():
    rl = RLConfig(prompts=4, samples=5, max_tokens=100)
    # 35 tokens on average: 35 decoding steps, and 20 answers of 35 tokens to learn.
    assert rl_step_seconds(rl, TIMING) == pytest.approx(35 * 0.02 + 20 * 35 / 1000)


def test_evaluations_are_counted_by_their_tokens():
    recipe = Recipe(eval_items=64)
    after_sft = 3 * 34 * 0.01 + 64 * 220 / 4000  # sums, letters, vowels at 34 tokens a reply; facts and prompts to read
    assert evaluation_seconds(recipe, TIMING, "sft") == pytest.approx(after_sft)
    base = 3 * 128 * 0.01 + 64 * 220 / 4000 + 4 * 65_536 / 4000  # replies that never end, and four validations
    assert evaluation_seconds(recipe, TIMING, "pretrain", 1, 4 * 65_536) == pytest.approx(base)
    assert evaluation_seconds(recipe, TIMING, "pretrain", 4, 4 * 65_536) == pytest.approx(base - 3 * 65_536 / 4000)
    files = replace(recipe, eval_data="somewhere")
    assert evaluation_seconds(files, TIMING, "sft") == pytest.approx(after_sft + 128 * 0.01 + 64 * 390 / 4000)


def test_what_was_not_measured_is_reckoned_from_training():
    recipe, bare = Recipe(eval_items=64), Timing(tokens_per_second=1000, decode_seconds=0.02)
    whole = replace(bare, forward_tokens_per_second=3000, reply_seconds=0.02 * 64 / 128)
    assert evaluation_seconds(recipe, bare, "pretrain", 1, 9e4) == evaluation_seconds(recipe, whole, "pretrain", 1, 9e4)


def test_checkpoints_cost_what_they_write():
    assert saving_seconds(int(SAVING_BYTES_PER_SECOND)) == 12
    assert saving_seconds(int(SAVING_BYTES_PER_SECOND), 4) == 48  # with each validation
    parameters = int(COPYING_BYTES_PER_SECOND)
    assert saving_share(Recipe(save_every_seconds=120), parameters, gpu=True) == 0.1
    assert saving_share(Recipe(save_every_seconds=1), parameters, gpu=True) == 1.0
    assert saving_share(Recipe(save_every_seconds=1320), parameters, gpu=False) == pytest.approx(0.1)  # writing takes the cores


@given(parameters=st.integers(10**4, 10**10), gpu=st.booleans())
def test_f8_saving_costs_at_most_a_hundredth(parameters, gpu):
    assert saving_share(Recipe(), parameters, gpu=gpu) <= 0.01
    assert save_interval(Recipe(), parameters, gpu=gpu) >= 30
    assert save_interval(Recipe(save_every_seconds=5), parameters, gpu=gpu) == 5  # a user's number wins


@given(tokens=st.floats(1e3, 1e12))
def test_f16_validations_take_a_share_of_the_time(tokens):
    times, each = validation(Recipe(), tokens)
    assert times * each / 3 <= max(0.03 * tokens, times * 2**14 / 3) * 1.001
    assert each >= 262_144 or tokens < 2.5e7
    assert validation(Recipe(validations=7, validation_tokens=1000), tokens) == (7, 1000)


def test_the_parts_of_a_budget_add_up():
    recipe = Recipe(budget="1h", depth=2, save_every_seconds=100.0)
    hardware = Hardware(timings={2: TIMING}, seconds_left=3600)
    plan = make_plan(recipe, hardware, vocab_size=512)
    parameters = sum(plan.parameters.values())
    validated = plan.validations * plan.validation_tokens
    stages = [name for name, stage in plan.stages.items() if stage.steps]
    scoring = sum(evaluation_seconds(recipe, TIMING, stage, 1, validated * (stage == "pretrain")) for stage in stages)
    opening = sum(3 + saving_seconds(parameters, plan.validations if stage == "pretrain" else 1) for stage in stages)
    training = sum(stage_seconds(recipe, hardware, plan.model, Data()).values())
    assert training * (1 + saving_share(recipe, parameters, gpu=False)) + scoring + opening == pytest.approx(3600 * (1 - RESERVE))
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
    expected = steps * (1 + saving_share(plan.recipe, parameters, gpu=True)) + saving_seconds(parameters, plan.validations)
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
    found = first_depth(Recipe(budget="4h"), hardware, 32768, 989e12, Data())
    assert 8 <= found < draft_plan(Recipe(budget="4h", gpu="8xH100")).model.depth
    assert first_depth(Recipe(budget="10s"), replace(hardware, seconds_left=10), 32768, 1e12, Data()) == 1


def test_timing_takes_as_long_as_it_is_told():
    from tiny_run import RUNTIME

    shape = make_shape(Recipe(width=64, context=32), 1, 300)
    few, forward = calibrate.step_seconds(shape, 1, RUNTIME, Recipe())
    assert len(few) == calibrate.WARMUP_STEPS + calibrate.TIMED_STEPS
    assert 0 < forward
    many, _ = calibrate.step_seconds(shape, 1, RUNTIME, Recipe(), at_least=10 * max(few))
    assert sum(many[calibrate.WARMUP_STEPS :]) >= 5 * max(few)
    assert LONGEST_TIMING <= 10


def test_decoding_is_timed_with_what_decodes(monkeypatch):
    from tiny_run import RUNTIME

    built = []
    for name in ("NativeRunner", "TorchRunner"):
        runner = getattr(calibrate, name)
        monkeypatch.setattr(calibrate, name, lambda *rest, r=runner, **more: built.append(r.__name__) or r(*rest, **more))
    shape = make_shape(Recipe(width=64, context=32), 1, 300)
    assert calibrate.decoding_seconds(shape, 3, 500, RUNTIME) > 0
    monkeypatch.setattr(calibrate, "why_not", lambda model: "a test says so")
    assert calibrate.decoding_seconds(shape, 3, 10, RUNTIME) > 0
    assert built == ["NativeRunner", "TorchRunner"]


def test_this_machine_is_measured_once_more_at_the_depth_it_takes():
    from tiny_run import RUNTIME

    from nutshell.train.prepare import hardware_of

    rl = RLConfig(share=0.1, prompts=2, samples=2, max_tokens=8)
    recipe = Recipe(budget="10s", width=64, context=32, vocab_size=300, tokens_per_step=64, eval_items=2)
    recipe = replace(recipe, tokens_per_parameter=1e-3, stages=replace(recipe.stages, rl=rl))
    found = measure(replace(recipe, depth=2), RUNTIME, hardware_of(RUNTIME), 300, 10.0, Data())
    timing = found.timings[2]
    assert list(found.timings) == [2]
    assert min(timing.tokens_per_second, timing.decode_seconds, timing.reply_seconds, timing.forward_tokens_per_second) > 0
    stage = make_plan(replace(recipe, depth=2), found, vocab_size=300).stages["pretrain"]
    assert stage.seconds == pytest.approx(
        stage.steps * 64 / timing.tokens_per_second + timing.startup_seconds, rel=0.05, abs=0.05
    )
    small = replace(hardware_of(RUNTIME), memory_bytes=1 << 16)
    with pytest.raises(ValueError, match="depth 2, width 64 does not fit"):
        measure(replace(recipe, depth=2), RUNTIME, small, 300, 10.0, Data())


def test_f5_a_step_that_runs_out_of_memory_is_halved_until_it_fits():
    from tiny_run import RUNTIME

    plan, tried = make_plan(Recipe(depth=1, context=128, tokens_per_step=128 * 12), Hardware(), vocab_size=300), []

    def step(shape, size, runtime, recipe, most=4):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = probe_micro_batch(plan, RUNTIME, step)
    assert tried == [12, 6, 3]
    assert (found.micro_batch_size, found.grad_accum_steps) == (3, 4)
    assert found.stages == plan.stages  # batches stay
    assert probe_micro_batch(found, RUNTIME, step) is found
    with pytest.raises(ValueError, match="one row does not fit this GPU's memory"):
        probe_micro_batch(plan, RUNTIME, lambda *a: step(*a, most=0))
    probe_micro_batch(plan, RUNTIME)  # a real step of the planned model


def test_f6_a_measurement_leaves_no_graphs_behind(monkeypatch):
    """Depths are timed one after the other, compiled, then a model is trained: each has one static graph, none runs eagerly."""
    from tiny_run import RUNTIME

    compiled, compile_model = [], calibrate.compile_model
    monkeypatch.setattr(calibrate, "compile_model", lambda model, runtime: compile_model(model, runtime, backend=backend))

    def backend(graph, inputs):
        compiled.append(all(isinstance(size, int) for x in inputs for size in x.shape))
        return graph.forward

    runtime, limit = replace(RUNTIME, compiled=True), 2
    with torch._dynamo.config.patch(recompile_limit=limit):
        for width in range(64, 64 + 32 * (limit + 2), 32):
            before = len(compiled)
            calibrate.step_seconds(make_shape(Recipe(width=width, context=16, head_dim=32), 1, 300), 1, runtime, Recipe())
            assert len(compiled) - before == 1
    assert all(compiled)


def test_f7_a_budget_on_a_small_card_takes_the_largest_depth_that_fits(monkeypatch):
    from tiny_run import RUNTIME

    timing = Timing(tokens_per_second=1e9, decode_seconds=1e-3, reply_seconds=1e-3)
    monkeypatch.setattr(calibrate, "time_depth", lambda shape, rows, runtime, recipe: timing)
    monkeypatch.setattr(calibrate, "step_seconds", lambda *a, **k: ([1e-3] * 9, 1e-3))
    small, recipe = Hardware(device="cuda", dtype="bfloat16", memory_bytes=4 * GIB), Recipe(budget="10h")
    found = measure(recipe, RUNTIME, small, 32768, 36_000.0, Data())
    plan = make_plan(recipe, found, vocab_size=32768)
    assert plan.model.depth == max(found.timings) > 4
    assert sum(plan.forecast.memory.values()) <= small.memory_bytes
    with pytest.raises(ValueError, match="does not fit"):
        measure(recipe, RUNTIME, replace(small, memory_bytes=1 << 20), 32768, 36_000.0, Data())
    divided = measure(replace(recipe, shard="weights"), RUNTIME, replace(small, world_size=8), 32768, 36_000.0, Data())
    assert max(divided.timings) > max(measure(recipe, RUNTIME, replace(small, world_size=8), 32768, 36_000.0, Data()).timings)
