"""What `nutshell ablate --vary` names: settings and their values, read into one recipe for each variant. No torch."""

from __future__ import annotations

import difflib
import itertools
import re
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from nutshell.config import differences, from_dict
from nutshell.plan.recipe import Recipe
from nutshell.plan.studies import Ablation


class Variant(NamedTuple):
    name: str  # its varied settings, such as "smear=false"
    folder: str  # what differs from the recipe, or "base": so that a cell counts in other ablations of the same recipe too
    values: dict[str, Any]  # every varied setting by its dotted name
    recipe: Recipe


def settings_of(asked: Recipe) -> Recipe:
    """The settings of a run alone, without those of a sweep or an ablation."""
    return Recipe(**{field.name: getattr(asked, field.name) for field in fields(Recipe)})


def values_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in vars(settings).items():
        found |= values_of(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: value}
    return found


def read_value(text: str, like: Any) -> Any:
    """A typed value, converted to the type of `like`; ValueError or KeyError where that cannot be."""
    if isinstance(like, tuple):
        return tuple(part for part in re.split(r"[,\s]+", text.strip("()[] ")) if part)
    return {"true": True, "false": False}[text.lower()] if isinstance(like, bool) else type(like)(text)


def read_vary(text: str, base: Recipe) -> tuple[str, list[Any]]:
    """ "optimizer.matrix_lr=0.01,0.02" -> the setting's dotted name and its values, the baseline's first."""
    settings = values_of(base)
    asked, given, values = text.partition("=")
    name = asked.strip().removeprefix("--").replace("-", "_")
    if name not in settings:
        close = [known for known in settings if known.endswith(f".{name}")] or difflib.get_close_matches(name, settings, n=1)
        hint = f" Did you mean {close[0]}?" if close else " nutshell pretrain --help lists them."
        raise ValueError(f"--vary {text}: there is no setting {name!r}.{hint} Write it like --vary optimizer.matrix_lr=0.01,0.02")
    own = settings[name]
    parts = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", values)] if given else []
    try:
        found = [read_value(part, own) for part in parts]
    except (ValueError, KeyError):
        accepted = {bool: "true or false", int: "whole numbers", float: "numbers"}[type(own)]
        raise ValueError(f"--vary {text}: accepted for {name} are {accepted}, separated by commas.") from None
    if len(found) == 1:
        found.insert(0, own)  # one value is compared with the recipe's own
    if len(found) < 2 or len({repr(value) for value in found}) < len(found):
        raise ValueError(f"--vary {text}: accepted are two or more values that differ, or one that differs from {own!r}.")
    return name, found


def read_variants(asked: Ablation) -> list[Variant]:
    """The variants, the baseline first: a grid over all --vary, or with --each one setting at a time."""
    if not asked.vary:
        raise ValueError("nothing to vary. Name a setting and its values: --vary optimizer.matrix_lr=0.01,0.02")
    base = settings_of(asked)
    varied = [read_vary(text, base) for text in asked.vary]
    names = [name for name, _ in varied]
    if len(set(names)) < len(names):
        raise ValueError(f"--vary names {max(names, key=names.count)} twice. Write all its values after one =.")
    combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in varied))]
    if asked.each:
        first = combinations[0]
        combinations = [c for c in combinations if sum(c[name] != first[name] for name in names) <= 1]
    variants = []
    for values in combinations:
        nested: dict[str, Any] = {}
        for name, value in values.items():
            *tables, key = name.split(".")
            inner = nested
            for table in tables:
                inner = inner.setdefault(table, {})
            inner[key] = value
        recipe = from_dict(Recipe, nested, "--vary " + " ".join(asked.vary), base=base)
        changed = [f"{name}={_text(new)}" for name, _, new in differences(base, recipe)]
        named = ", ".join(f"{name}={_text(value)}" for name, value in values.items())
        folder = re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join(changed) or "base")
        variants.append(Variant(named, folder, values, recipe))
    return variants


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
