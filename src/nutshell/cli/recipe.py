"""What the verbs that train share: the recipe of [RECIPE] and flags, and the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from nutshell.plan.recipe import Recipe
    from nutshell.runtime import Runtime

Study = TypeVar("Study", bound="Recipe")


def read_recipe(verb: str, arguments: list[str], description: str | None) -> Recipe:
    """[RECIPE] and flags -> the recipe. In a run that has a plan its recipe is the default, and must stay as it is."""
    from nutshell.config import differences, load_toml, parse
    from nutshell.plan.recipe import Recipe, flags_with_new_names, with_new_names

    given, default, arguments = None, Recipe(), flags_with_new_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        given, arguments = arguments[0], arguments[1:]
        default = load_toml(Recipe, given, tidy=with_new_names)
    out = next((b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--out"), default.out)
    out = next((a.removeprefix("--out=") for a in arguments if a.startswith("--out=")), out)
    plan = None
    if (Path(out) / "plan.json").exists():
        from nutshell.plan.recipe import FREE_IN_A_RUN
        from nutshell.plan.record import load_plan

        plan = load_plan(Path(out))
    if plan and not given:
        default = replace(plan.recipe, out=out)
    recipe = parse(Recipe, arguments, prog=f"nutshell {verb} [RECIPE]", description=description, default=default)
    if plan:
        for name, planned, asked in differences(plan.recipe, recipe):
            if name not in FREE_IN_A_RUN:
                raise ValueError(
                    f"{out} was planned with {name} = {planned!r}, now it is {asked!r}. "
                    "Leave that flag out to go on with the run, or give another --out for a new one."
                )
        # Weights that were trained go on in the dtype they had; before that, and for all else, this machine decides.
        if recipe.dtype == plan.recipe.dtype and any(Path(out).glob("*/step-*")):
            recipe = replace(recipe, dtype=plan.hardware.dtype)
    return recipe


def read_study(cls: type[Study], verb: str, arguments: list[str], description: str | None) -> Study:
    """[RECIPE] and flags of a verb that makes many runs. Its folder is never the recipe's own, which is that of one run."""
    from nutshell.config import load_toml, parse
    from nutshell.plan.recipe import flags_with_new_names, with_new_names

    default, arguments = None, flags_with_new_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        default = load_toml(cls, arguments[0], tidy=with_new_names)
        default = replace(default, out=cls.out if default.out == cls.out else f"{default.out.rstrip('/')}-{verb}")
        arguments = arguments[1:]
    vary, rest, taking = [], [], False
    for argument in arguments:  # --vary a --vary b is --vary a b
        if argument == "--vary":
            taking = True
        elif argument.startswith("--vary=") or (taking and not argument.startswith("--")):
            vary.append(argument.removeprefix("--vary="))
        else:
            taking = False
            rest.append(argument)
    arguments = [*rest, "--vary", *vary] if vary else rest
    return parse(cls, arguments, prog=f"nutshell {verb} [RECIPE]", description=description, default=default)


@contextlib.contextmanager
def open_runtime(recipe: Recipe) -> Iterator[Runtime]:
    """The runtime of a training; ranks that end well leave their group together."""
    from nutshell.model.probe import choose_attention
    from nutshell.plan.hardware import peak_flops
    from nutshell.runtime import leave_ranks, start_runtime

    yield start_runtime(
        device=recipe.device,
        dtype=recipe.dtype,
        threads=recipe.threads,
        fp8=recipe.fp8,
        choose_attention=choose_attention,
        gpu_peak_flops=peak_flops,
    )
    leave_ranks()
