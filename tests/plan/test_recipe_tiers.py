"""The recipes of machines are outputs of the plan: what they pin is what it derives now.

`python tests/test_recipe_tiers.py` writes the numbers anew where the rules of the plan have changed on purpose.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nutshell.config import load_toml
from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import Plan

RECIPES = Path(__file__).parents[2] / "recipes"
BUDGETS = {
    "speedrun-100usd": "100usd", "speedrun-300usd": "300usd", "speedrun-1000usd": "1000usd",
    "single-gpu-8gb": "12h", "single-gpu-12gb": "12h", "single-gpu-24gb": "12h",
}  # fmt: skip
DEPTHS = {"speedrun-300usd": 26, "speedrun-1000usd": 32}
"""The tiers that users know by their depth; elsewhere the budget chooses it."""


def derived(name: str) -> Plan:
    """The plan of a recipe without the numbers it pins, for its budget."""
    recipe = load_toml(Recipe, RECIPES / name)
    stages = replace(recipe.stages, **{stage: replace(config, steps=0) for stage, config in vars(recipe.stages).items()})
    free = replace(recipe, budget=BUDGETS[name], depth=DEPTHS.get(name, 0), tokens_per_step=0, micro_batch_size=0, stages=stages)
    return draft_plan(free)


def pinned(plan: Plan) -> dict:
    steps = {name: stage.steps for name, stage in plan.stages.items()}
    return {
        "depth": plan.model.depth,
        "tokens_per_step": plan.stages["pretrain"].tokens_per_step,
        "micro_batch_size": plan.micro_batch_size,
        "steps": steps,
    }


@pytest.mark.parametrize("name", BUDGETS)
def test_a_recipe_pins_what_the_plan_derives(name):
    assert pinned(draft_plan(load_toml(Recipe, RECIPES / name))) == pinned(derived(name))


@pytest.mark.parametrize("name", BUDGETS)
def test_a_recipe_keeps_its_budget_and_fits_its_machine(name):
    recipe = load_toml(Recipe, RECIPES / name)
    plan = draft_plan(recipe)
    budget = replace(recipe, budget=BUDGETS[name]).budget_seconds()
    assert 0.85 * budget < plan.forecast.seconds < budget
    assert sum(plan.forecast.memory.values()) < plan.hardware.memory_bytes


@pytest.mark.parametrize("folder", sorted(RECIPES.iterdir()), ids=lambda folder: folder.name)
def test_every_recipe_has_a_script_that_names_it(folder):
    if not (folder / "config.toml").exists():
        pytest.skip("a recipe of another kind")
    script = folder / "run.sh"
    assert script.stat().st_mode & 0o111
    assert folder.name in script.read_text()


def write(name: str) -> None:
    file = RECIPES / name / "config.toml"
    text, plan = file.read_text(), pinned(derived(name))
    for key in ("depth", "tokens_per_step", "micro_batch_size"):
        text = re.sub(rf"(?m)^{key} = \d+", f"{key} = {plan[key]}", text)
    for stage, steps in plan["steps"].items():
        text = re.sub(rf"(?s)(\[stages\.{stage}\].*?\nsteps = )\d+", rf"\g<1>{steps}", text)
    file.write_text(text)


if __name__ == "__main__":
    for name in BUDGETS:
        write(name)
