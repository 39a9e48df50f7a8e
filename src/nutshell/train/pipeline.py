"""The stages of a run in their order. What is finished is passed over, so the same command always goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nutshell.files import write_json
from nutshell.metrics import read_metrics, seconds_by_stage
from nutshell.plan.estimate import describe
from nutshell.plan.plan import refit
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import Plan
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.train.dpo import dpo
from nutshell.train.prepare import check_order, open_run
from nutshell.train.pretrain import pretrain
from nutshell.train.rl import reinforce
from nutshell.train.sft import sft

TRAIN: dict[str, Callable[[Run], None]] = {
    "pretrain": pretrain,
    "midtrain": partial(sft, name="midtrain"),
    "sft": partial(sft, name="sft"),
    "dpo": dpo,
    "rl": reinforce,
}
"""What trains each of `files.STAGES`, in their order."""


def fit_to_budget(run: Run, stage: str) -> Plan:
    """The plan as it stands when a stage begins: what is left of the budget decides its steps, once, and is saved.

    Time is what the log has counted, so an interruption does not shorten a run, and a saved decision is never taken again.
    """
    plan = run.plan
    if not plan.recipe.budget_seconds() or stage in plan.refitted or getattr(plan.recipe.stages, stage).steps:
        return plan
    lines = read_metrics(run.folder)
    left = plan.recipe.budget_seconds() - sum(seconds_by_stage(lines).values())
    done = [line for line in lines if "loss" in line]
    planned = sum(plan.stages[name].seconds or 0.0 for name in {line["stage"] for line in done})
    took = seconds_by_stage(done)
    slowdown = sum(took.values()) / planned if planned else 1.0
    left, slowdown = run.runtime.agree([left, slowdown])
    plan = refit(plan, stage, seconds_left=left, slowdown=slowdown)
    if run.runtime.is_main:
        write_json(run.folder / "plan.json", plan.to_dict())
    run.runtime.barrier()
    return plan


def run_stages(recipe: Recipe, runtime: Runtime, names: tuple[str, ...] = tuple(TRAIN)) -> Run:
    """Run the named stages (default: all of them) and return the run."""
    check_order(recipe, names[0])
    with open_run(recipe, runtime) as run:
        run.log.note(describe(run.plan))
        for name in names:
            if name != "pretrain":
                run.plan = fit_to_budget(run, name)
            if run.finished(name):
                run.log.note(f"{name} is finished in {run.folder}. To train further: --init-from {run.folder} --out ANOTHER.")
            elif run.plan.stages[name].steps:
                TRAIN[name](run)
        return run
