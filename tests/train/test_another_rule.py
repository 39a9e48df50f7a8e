"""A row of the table of groups is all that it takes to move the matrices by another rule."""

from dataclasses import replace

from tiny_run import RUNTIME, lines, recipe

from nutshell.plan import groups
from nutshell.train.pipeline import run_stages


def test_every_group_may_be_adamws(tmp_path, monkeypatch):
    """Naming the rate of "muon" in the log ended such a run in a ValueError of an empty sequence."""
    rows = tuple(replace(row, rule="adamw", weight_decay=row.weight_decay or 0.0) for row in groups.PARAMETER_GROUPS)
    monkeypatch.setattr(groups, "PARAMETER_GROUPS", rows)
    asked = recipe(tmp_path / "run")
    run_stages(replace(asked, optimizer=replace(asked.optimizer, matrix_lr=0.002)), RUNTIME, ("pretrain",))
    steps = [line for line in lines(tmp_path / "run", "pretrain") if "loss" in line]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(step["lr"] > 0 for step in steps)
