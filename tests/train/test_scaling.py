"""A whole sweep in seconds, interrupted and gone on with; and what a budget is divided into."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from tiny_run import RUNTIME, recipe

from nutshell.metrics import read_metrics
from nutshell.plan.cost import VALIDATION_SHARE
from nutshell.plan.hardware import Timing
from nutshell.plan.law import load_law
from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.studies import Sweep
from nutshell.train.scaling import SHARES, affordable_horizon, run_sweep, sweep_cell


def sweep(out, **changes) -> Sweep:
    settings = {name: value for name, value in vars(recipe(out)).items() if name != "depth"}
    return Sweep(**{**settings, "depths": (1, 2), "horizons": ("3k", "6k"), **changes})


def test_a_sweep_ends_in_a_law_that_plans_use_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked, packaged = sweep(tmp_path / "sweep"), tmp_path / "packaged.json"
    packaged.write_text('{"law": "the one before"}')
    record = run_sweep(asked, RUNTIME, packaged=packaged)
    assert {(point["parameters"], point["tokens"]) for point in record["points"]} == {
        (p, t) for p in {point["parameters"] for point in record["points"]} for t in (2560, 5632)
    }
    law = load_law(tmp_path / "sweep" / "scaling.json")
    assert load_law(packaged) == law
    assert json.loads((tmp_path / "sweep" / "scaling-before.json").read_text()) == {"law": "the one before"}
    assert (law.text, law.vocab_size, law.points) == ("primer", 512, 4)
    assert law.error < 0.2
    text = (tmp_path / "sweep" / "scaling.md").read_text()
    assert all(f"{point['bpb']:.4f}" in text for point in record["points"])
    plot = ElementTree.fromstring((tmp_path / "sweep" / "scaling.svg").read_text())
    sizes = plot.findall(".//*[@data-name]")
    assert [len(size.findall("{*}polyline")) for size in sizes] == [1, 1]
    assert [size.find("{*}path").get("d").count("M") for size in sizes] == [2, 2], "each run is a dot beside its fit"
    plan = draft_plan(replace(recipe(tmp_path), depth=1), law)
    assert plan.forecast.bpb is not None
    assert "on primer, by a fit to 4 runs" in plan.forecast.bpb_note

    # Again: finished cells are passed over, a lost one is run, and the law is the same.
    lost = tmp_path / "sweep" / "depth1-3e03"
    lines = {folder: len(read_metrics(folder)) for folder in (tmp_path / "sweep").glob("depth*")}
    for path in sorted(lost.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run_sweep(replace(asked, refresh=False), RUNTIME, packaged=tmp_path / "nowhere")["points"] == record["points"]
    assert lines == {folder: len(read_metrics(folder)) for folder in lines}
    assert not (tmp_path / "nowhere").exists()

    # One horizon more: what is there counts, and is not run again.
    more = run_sweep(replace(asked, horizons=("3k", "6k", "9k"), refresh=False), RUNTIME)
    assert len(more["points"]) == 6
    assert all(point in more["points"] for point in record["points"])
    assert lines == {folder: len(read_metrics(folder)) for folder in lines}
    with pytest.raises(ValueError, match=r"holds a sweep of .*Give another --out"):
        run_sweep(replace(asked, horizons=(), budget="10min"), RUNTIME)


def test_a_cell_that_a_budget_has_no_time_for_is_left_out_and_named(tmp_path):
    asked = sweep(tmp_path / "sweep", horizons=("2k", "4k", "2B"), budget="10min", refresh=False)
    record = run_sweep(asked, RUNTIME)
    assert len(record["points"]) == 4
    assert "Not run, for lack of time: depth 2 on 2,000,000,000 tokens." in (tmp_path / "sweep" / "scaling.md").read_text()


def test_a_budget_is_divided_among_depths_and_horizons():
    timings = {1: Timing(tokens_per_second=40_000), 2: Timing(tokens_per_second=10_000)}
    tokens = affordable_horizon(timings, 1200, {1: 10**5, 2: 10**6})
    steps = sum(share * tokens / timing.tokens_per_second for share in SHARES for timing in timings.values())
    assert (1 + VALIDATION_SHARE) * steps == pytest.approx(1200, rel=0.05)
    assert affordable_horizon(timings, 0, {1: 1, 2: 1}) == 400_000  # the shortest horizon is never less than 100k


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1,)}, "two depths"),
        ({"depths": (1, 0)}, "numbers of at least 1"),
        ({"horizons": ("1M",)}, "two horizons"),
        ({"horizons": ("1M", "many")}, "horizons is 'many'; accepted: a number above 0, written like 500k"),
        ({"horizons": ()}, "neither budget nor horizons"),
        ({"depth": 3}, "leave out --depth"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path, **changes)


def test_cells_keep_every_setting_of_the_sweep(tmp_path):
    asked = sweep(tmp_path / "sweep", seed=7, window_pattern="L")
    cell = sweep_cell(asked, 2, 5e4, 512, tmp_path / "data")
    changed = "out data tokenizer vocab_size budget depth tokens_per_parameter eval_tasks eval_data stages"
    assert type(cell) is Recipe
    assert {name for name in vars(cell) if getattr(cell, name) != getattr(asked, name)} <= set(changed.split())
    assert [stage.share for stage in vars(cell.stages).values()] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert cell.stages.pretrain.steps == 0  # of the horizon
