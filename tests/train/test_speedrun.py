"""What a run prepares once, and how a budget is spent: decisions are taken once, saved, and never taken again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import RUNTIME, recipe

from nutshell.data.shards import open_shards, write_shards
from nutshell.metrics import MetricsLog
from nutshell.plan.hardware import Timing
from nutshell.plan.plan import Hardware, make_plan
from nutshell.plan.recipe import FREE_IN_A_RUN, Recipe
from nutshell.plan.record import load_plan
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.train.pipeline import fit_to_budget, run_stages
from nutshell.train.prepare import check_recipe, open_run, prepare_data
from nutshell.train.prepare_tokenizer import prepare_tokenizer


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_data_and_tokenizer_are_made_once(tmp_path):
    settings = recipe(tmp_path / "run")
    data = prepare_data(settings, RUNTIME)
    tok = prepare_tokenizer(settings, RUNTIME, data)
    before = stamps(tmp_path)
    assert prepare_data(settings, RUNTIME) == data
    assert prepare_tokenizer(settings, RUNTIME, data).fingerprint == tok.fingerprint
    assert stamps(tmp_path) == before


def test_the_same_recipe_gives_the_same_data_and_tokenizer(tmp_path):
    prints = []
    for name in ("a", "b"):
        data = prepare_data(recipe(tmp_path / name), RUNTIME)
        tok = prepare_tokenizer(recipe(tmp_path / name), RUNTIME, data)
        prints.append((tok.fingerprint, [open_shards(data).read("train", 0), open_shards(data).read("val", 0)]))
    assert prints[0] == prints[1]
    other = prepare_data(recipe(tmp_path / "c", seed=1), RUNTIME)
    assert open_shards(other).read("train", 0) != prints[0][1][0]


def test_shards_of_ones_own_are_used_in_place(tmp_path):
    shards = write_shards([f"Document {i} tells of {i}." for i in range(200)], tmp_path / "shards")
    settings = recipe(tmp_path / "run", data=str(shards))
    assert prepare_data(settings, RUNTIME) == shards
    run_stages(settings, RUNTIME, ("pretrain",))
    assert not (tmp_path / "run" / "data").exists()


def test_a_plan_is_on_the_disk_before_anything_is_trained_and_is_read_back_as_it_is(tmp_path):
    with open_run(recipe(tmp_path / "run"), RUNTIME) as run:
        assert load_plan(run.folder) == run.plan
        assert not any((run.folder / stage).exists() for stage in run.plan.stages)
        first = run.plan
    with open_run(recipe(tmp_path / "run", save_every_seconds=3.0, usd_per_hour=2.0, budget="9min"), RUNTIME) as run:
        assert replace(run.plan, recipe=first.recipe, save_every_seconds=first.save_every_seconds) == first
        changed = {name for name in vars(first.recipe) if getattr(run.plan.recipe, name) != getattr(first.recipe, name)}
        assert changed <= set(FREE_IN_A_RUN)
        assert run.plan.save_every_seconds == 3.0


# ---- refusals before anything is written ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "neither depth nor budget"),
        ({"width": 100, "depth": 4}, "width"),
        ({"tokens_per_step": 500}, "tokens_per_step is 500"),
        ({"micro_batch_size": 3}, "micro_batch_size is 3"),
        ({"data": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"sft": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank(tmp_path, changes, message):
    for runtime in (RUNTIME, replace(RUNTIME, rank=1, world_size=1)):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            check_recipe(recipe(tmp_path / "run", **changes), runtime)


def test_a_batch_that_the_ranks_do_not_divide_is_refused(tmp_path):
    eight = Runtime(device=RUNTIME.device, dtype=RUNTIME.dtype, world_size=8)
    with pytest.raises(ValueError, match=r"not divisible by context x ranks = 128 x 8\. Use a multiple of 1024"):
        check_recipe(recipe(tmp_path / "run"), eight)


def test_a_budget_alone_is_enough(tmp_path):
    check_recipe(Recipe(out=str(tmp_path / "run"), budget="9min"), RUNTIME)


# ---- a budget ------------------------------------------------------------------------------------------------------


@pytest.fixture
def budgeted(tmp_path):
    """A run of 100 s that has a plan, and a log to be filled."""

    def make(**stages) -> Run:
        settings = Recipe(out=str(tmp_path), budget="100s", depth=1, vocab_size=512)
        for name, changes in stages.items():
            settings = replace(
                settings, stages=replace(settings.stages, **{name: replace(getattr(settings.stages, name), **changes)})
            )
        timings = {1: Timing(tokens_per_second=20_000, decode_seconds=0.002)}
        plan = make_plan(settings, Hardware(timings=timings, seconds_left=100), vocab_size=512)
        return Run(folder=tmp_path, data=tmp_path, plan=plan, runtime=RUNTIME, tok=None, log=log)

    with MetricsLog(tmp_path) as log:
        yield make


def spend(run: Run, stage: str, seconds: float) -> None:
    steps = run.plan.stages[stage].steps
    run.log.step({"stage": stage, "step": steps, "steps": steps, "seconds": seconds, "loss": 1.0})


def test_a_slow_machine_gets_fewer_steps_for_what_is_left(budgeted):
    run = budgeted()
    planned = run.plan.stages
    spend(run, "pretrain", 2 * planned["pretrain"].seconds)
    fitted = fit_to_budget(run, "midtrain")
    assert fitted.refitted == ("midtrain",)
    assert fitted.stages["pretrain"] == planned["pretrain"]
    for stage in ("midtrain", "sft", "rl"):
        assert 0 < fitted.stages[stage].steps < planned[stage].steps
    assert load_plan(run.folder) == fitted


def test_a_decision_is_taken_once(budgeted):
    """A restart after kill -9 must not choose another number of steps for a stage that has begun."""
    run = budgeted()
    spend(run, "pretrain", 1.5 * run.plan.stages["pretrain"].seconds)
    run.plan = fit_to_budget(run, "midtrain")
    text = (run.folder / "plan.json").read_text()
    spend(run, "midtrain", 500)
    assert fit_to_budget(run, "midtrain") == run.plan
    assert (run.folder / "plan.json").read_text() == text
    later = fit_to_budget(run, "sft")
    assert later.stages["midtrain"] == run.plan.stages["midtrain"]
    assert later.refitted == ("midtrain", "sft")


def test_steps_that_the_user_set_are_not_fitted(budgeted):
    run = budgeted(sft={"steps": 77})
    spend(run, "pretrain", 500)
    assert fit_to_budget(run, "sft") == run.plan
    assert fit_to_budget(run, "sft").stages["sft"].steps == 77
    run.plan = fit_to_budget(run, "midtrain")
    assert run.plan.stages["sft"].steps == 77


def test_without_a_budget_nothing_is_fitted(tmp_path):
    with open_run(recipe(tmp_path / "run"), RUNTIME) as run:
        assert fit_to_budget(run, "sft") == run.plan
        assert json.loads((run.folder / "plan.json").read_text())["refitted"] == []
