"""What the verbs that train share: the recipe from [RECIPE] and flags, and the runtime."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from nutshell.plan.recipe import Recipe
    from nutshell.runtime import Runtime

Study = TypeVar("Study", bound="Recipe")

SHORT_FLAGS = {
    "--init": "--init-from", "--pairs": "--stages.dpo.pairs", "--prompts": "--stages.rl.tasks", "--tasks": "--stages.rl.tasks",
    "--reward": "--stages.rl.reward",
}  # fmt: skip
"""Short for settings of the later stages, at every verb that takes a recipe."""
OLD_NAMES = {"rows": "micro_batch_size", "lr_scale": "lr_fraction"}
"""Settings by the names they had until version 0.2; understood for one version more, with a note."""


def _new_name(old: str) -> str:
    """A setting's name of today, with a note on stderr where it is another."""
    if old in OLD_NAMES:
        print(f"{old} is called {OLD_NAMES[old]} now; the old name will be refused in the next version.", file=sys.stderr)
    return OLD_NAMES.get(old, old)


def with_new_names(values: dict) -> dict:
    """The tables of a recipe with each old name replaced. ValueError where a setting is given by both names."""
    if twice := [old for old, new in OLD_NAMES.items() if {old, new} <= set(values)]:
        raise ValueError(f"{twice[0]} and {OLD_NAMES[twice[0]]} are the same setting. Accepted: {OLD_NAMES[twice[0]]} alone.")
    return {_new_name(key): with_new_names(value) if isinstance(value, dict) else value for key, value in values.items()}


def flags_with_new_names(arguments: list[str]) -> list[str]:
    """The same for flags: --rows 4, --rows=4, --stages.sft.lr-scale 0.5. Short flags become those that they stand for."""

    def replaced(found: re.Match[str]) -> str:
        return found[1] + _new_name(found[2].replace("-", "_")).replace("_", "-")

    arguments = [re.sub(r"^--[\w-]+(?==|$)", lambda flag: SHORT_FLAGS.get(flag[0], flag[0]), argument) for argument in arguments]
    return [re.sub(r"^(--(?:[\w-]+\.)*)(rows|lr[-_]scale)(?==|$)", replaced, argument) for argument in arguments]


def read_recipe(verb: str, arguments: list[str], description: str | None) -> Recipe:
    """[RECIPE] and flags -> the recipe. In a run that has a plan its recipe is the default.

    ValueError where the run was trained with other settings.
    """
    from nutshell.config import load_toml, parse
    from nutshell.plan.recipe import FREE_IN_A_RUN, Recipe
    from nutshell.plan.record import load_plan, standing_plan

    given, default, arguments = None, Recipe(), flags_with_new_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        given, arguments = arguments[0], arguments[1:]
        default = load_toml(Recipe, os.path.expanduser(given), tidy=with_new_names)
    out = os.path.expanduser(before_parsing(verb, arguments, "--out")[0].out or default.out)
    plan = load_plan(Path(out))
    if plan and not given:
        default = replace(plan.recipe, out=out)
    free = ", ".join(f"--{name.replace('_', '-')}" for name in FREE_IN_A_RUN[1:])
    description = f"{description} In a run that goes on these may change: {free}."
    usage = f"nutshell {verb}" if verb == "demo" else f"nutshell {verb} [RECIPE]"
    recipe = parse(Recipe, arguments, prog=usage, description=description, default=default)
    recipe = with_absolute_paths(recipe)
    if recipe.init_from and (given or plan is None or recipe.init_from != plan.recipe.init_from):
        recipe = with_shape_of(recipe, recipe.init_from)
    if recipe.init_from:
        first = verb if plan is None else next(name for name, stage in plan.stages.items() if stage.steps)
        recipe = without_earlier_stages(recipe, first)
    if plan and standing_plan(recipe) is None:
        print(f"{recipe.out}: nothing was trained yet, so the plan is made anew with these settings.", file=sys.stderr)
    return recipe


def without_earlier_stages(recipe: Recipe, stage: str) -> Recipe:
    """The recipe of a run that begins with another model at this stage: what comes before it is left out."""
    names = list(vars(recipe.stages))
    earlier = names[: names.index(stage)] if stage in names else []
    left_out = {name: replace(getattr(recipe.stages, name), share=0.0, steps=0) for name in earlier}
    return replace(recipe, stages=replace(recipe.stages, **left_out))


def before_parsing(verb: str, arguments: list[str], flag: str, **settings: Any) -> tuple[argparse.Namespace, list[str]]:
    """One flag, read before all others, and the arguments without it."""
    parser = argparse.ArgumentParser(f"nutshell {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument(flag, **settings)
    return parser.parse_known_args(arguments)


def with_absolute_paths(recipe: Study) -> Study:
    """Expand ~ in a recipe and in --flag=~/x; make sources absolute, so that a run can be resumed from any folder.

    ValueError where the run's folder has a name that is not UTF-8: the formats of weights and shards take no other.
    """
    from nutshell.files import shown
    from nutshell.plan.recipe import SOURCES

    out = os.path.expanduser(recipe.out)
    paths: dict[str, Any] = {name: _absolute(getattr(recipe, name)) for name in (*SOURCES, "eval_data", "scaling")}
    if (path := os.path.abspath(out)) != (text := shown(path)):
        raise ValueError(
            f"--out {text} is not UTF-8 as this terminal gives it; accepted: names in UTF-8. Give another --out, "
            "or, where the locale is not UTF-8, set PYTHONUTF8=1."
        )
    stages = {
        name: replace(stage, mixture=tuple(replace(part, data=_absolute(part.data)) for part in stage.mixture))
        for name, stage in vars(recipe.stages).items()
    }
    stages["dpo"] = replace(stages["dpo"], pairs=_absolute(stages["dpo"].pairs))
    tasks, scored = (tuple(_absolute(t) if "." in t else t for t in names) for names in (stages["rl"].tasks, recipe.eval_tasks))
    stages["rl"] = replace(stages["rl"], tasks=tasks, reward=_absolute(stages["rl"].reward))
    return replace(recipe, stages=replace(recipe.stages, **stages), out=out, eval_tasks=scored, **paths)


def _absolute(path: str) -> str:
    """Of a path; "primer" and nothing are none."""
    from nutshell.plan.recipe import PRIMER

    return os.path.abspath(os.path.expanduser(path)) if path not in ("", PRIMER) else path


def with_shape_of(recipe: Recipe, model: str) -> Recipe:
    """The recipe with the shape and tokenizer of a model to begin with. ValueError where it asks for another shape."""
    from nutshell.model_folder import find, load_config
    from nutshell.plan.recipe import Recipe
    from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer

    folder = find(model)
    settings = vars(load_config(folder)).items()
    shape: dict[str, Any] = {name: value for name, value in settings if hasattr(recipe, name) and name != "vocab_size"}
    for name, value in shape.items():
        if getattr(recipe, name) not in (getattr(Recipe(), name), value):
            raise ValueError(
                f"--init-from {model} has {name} = {value!r}, the recipe asks for {getattr(recipe, name)!r}. Leave that out."
            )
    if missing := [name for name in SPECIAL_TOKENS if name not in Tokenizer.load(folder).special_tokens]:
        raise ValueError(f"--init-from {model} has no token {missing[0]}, which training needs. Import it again with --chat.")
    if recipe.tokenizer and recipe.tokenizer != str(folder):
        raise ValueError(f"--init-from {model} brings its tokenizer along. Leave --tokenizer out.")
    return replace(recipe, **shape, params="", vocab_size=0, tokenizer=str(folder.absolute()))


def read_study(cls: type[Study], verb: str, arguments: list[str], description: str | None) -> Study:
    """[RECIPE] and flags of a verb that makes many runs. Its folder is never that of the recipe, which is a single run's."""
    from nutshell.config import load_toml, parse

    default, arguments = None, flags_with_new_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        default = load_toml(cls, os.path.expanduser(arguments[0]), tidy=with_new_names)
        default = replace(default, out=cls.out if default.out == cls.out else f"{default.out.rstrip('/')}-{verb}")
        arguments = arguments[1:]
    given, arguments = before_parsing(verb, arguments, "--vary", nargs="+", action="extend")  # --vary a --vary b is --vary a b
    arguments += ["--vary", *given.vary] if given.vary else []
    return with_absolute_paths(parse(cls, arguments, prog=f"nutshell {verb} [RECIPE]", description=description, default=default))


@contextlib.contextmanager
def open_runtime(recipe: Recipe, *, ranks: bool = True) -> Iterator[Runtime]:
    """The runtime of a training run, with the dtype that its plan has for this device. Ranks that succeed leave together."""
    from nutshell.model.probe import choose_attention
    from nutshell.plan.hardware import peak_flops
    from nutshell.plan.record import standing_plan
    from nutshell.runtime import leave_ranks, start_runtime

    plan = standing_plan(recipe)
    runtime = start_runtime(
        device=recipe.device,
        dtype=recipe.dtype,
        auto_dtype={plan.hardware.device: plan.hardware.dtype} if plan else {},
        threads=recipe.threads,
        fp8=recipe.fp8,
        ranks=ranks,
        choose_attention=choose_attention,
        gpu_peak_flops=peak_flops,
    )
    yield runtime
    leave_ranks(runtime)
