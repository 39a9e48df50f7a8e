"""`nutshell ablate`: variants of a recipe, pretrained on the same text with the same seeds, and compared.

A cell is a run folder of its own with pretraining alone, on the data and the tokenizer of the folder it stands in. The sweep of
`nutshell scaling` is made of cells too. What is finished is passed over, so the same command always goes on.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import statistics
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nutshell.config import differences, from_dict
from nutshell.data.mixed import open_corpus
from nutshell.files import write_json, write_text
from nutshell.metrics import read_metrics
from nutshell.model.probe import choose_attention
from nutshell.plan.plan import make_plan
from nutshell.plan.recipe import FREE_IN_A_RUN, Recipe
from nutshell.plan.record import Plan, load_plan
from nutshell.plan.stages import StageConfig, Stages
from nutshell.plan.studies import Ablation
from nutshell.report.ablation import page, summarise
from nutshell.run.lock import run_lock
from nutshell.runtime import Runtime, start_runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.pipeline import run_stages
from nutshell.train.prepare import check_data, expected_vocab_size, hardware_of, prepare_data, prepare_tokenizer
from nutshell.train.stage import TrainingDiverged

UNREAD = {*FREE_IN_A_RUN, "data", "tokenizer", "eval_items", "eval_tasks", "eval_data", "device", "dtype", "threads", "scaling"}
"""Settings that may differ where a cell goes on: they stand elsewhere (text, tokenizer, dtype) or change no weight."""
OUTSIDE_THE_PLAN = {"tokenizer", "fp8", "dtype", "shard"}
"""Settings worth varying although two plans that differ in them look alike."""


class Variant(NamedTuple):
    name: str  # its varied settings, such as "smear=false"
    folder: str  # what differs from the recipe, or "base": so that a cell counts in other ablations of the same recipe too
    values: dict[str, Any]  # every varied setting by its dotted name
    recipe: Recipe


def settings_of(asked: Recipe) -> Recipe:
    """The settings of a run alone, without those of a sweep or an ablation."""
    return Recipe(**{field.name: getattr(asked, field.name) for field in fields(Recipe)})


def cell_recipe(recipe: Recipe, out: Path, name: str, data: Path, **changes: Any) -> Recipe:
    """The run of the cell `name`: pretraining alone, scored by bits per byte alone, on the data and tokenizer of `out`."""
    stages = Stages(
        pretrain=replace(recipe.stages.pretrain, share=1.0), midtrain=StageConfig(), sft=StageConfig(),
        rl=replace(recipe.stages.rl, share=0.0, steps=0),
    )  # fmt: skip
    shared = {"out": str(out / name), "data": str(data), "tokenizer": str(out / "tokenizer"), "vocab_size": 0}
    settings = {"budget": "", "eval_tasks": ("none",), "eval_data": "", "stages": stages}
    return replace(settings_of(recipe), **{**shared, **settings, **changes})


def train_cell(recipe: Recipe, runtime: Runtime) -> dict[str, Any]:
    """Train a cell, or go on with it; returns its `cell_result`. ValueError where its folder was trained with other settings."""
    folder = Path(recipe.out)
    if plan := load_plan(folder):
        changed = [d for d in differences(plan.recipe, recipe) if d[0] not in UNREAD]
        changed += [("dtype", plan.hardware.dtype, runtime.dtype_name)] * (plan.hardware.dtype != runtime.dtype_name)
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now it is {new!r}" for name, old, new in changed)
            raise ValueError(f"{folder} was trained with other settings: {listed}. Give another --out, or delete that folder.")
    result = cell_result(folder)
    if result is None:
        torch.compiler.reset()  # graphs of the cells before, of other shapes, count towards the compiler's limit
        run_stages(recipe, runtime, ("pretrain",))
        result = cell_result(folder)
    if result is None:
        raise ValueError(f"{folder} has no finished pretraining. Run the same command again.")
    return result


def cell_result(folder: Path) -> dict[str, Any] | None:
    """bpb (None where it is not finite), tokens_per_second (median of the steps) and seconds of a finished cell, else None."""
    plan, lines = load_plan(folder), read_metrics(folder)
    last = plan.stages["pretrain"].steps if plan else 0
    scores = [line["eval"]["val_bpb"] for line in lines if line["step"] == last and "val_bpb" in line.get("eval", {})]
    steps = [line for line in lines if "loss" in line]
    if not scores or not steps:
        return None
    rates = [step["tokens_per_second"] for step in steps]
    return {"bpb": scores[-1], "tokens_per_second": statistics.median(rates), "seconds": steps[-1]["seconds"]}


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


def plan_cells(variants: list[Variant], out: Path, runtime: Runtime) -> list[dict[str, Any]]:
    """The settings that each variant's cell has of its own: its steps, so that all train on the same number of tokens, and its
    tokenizer if that varies.

    Pure, so that ValueError for a variant that is impossible or trains like another one comes before anything is trained.
    """

    def draft(variant: Variant, **changes: Any) -> Plan:
        if not variant.recipe.depth and not variant.recipe.params:
            raise ValueError("an ablation needs --depth, since a budget would be fitted to the machine.")
        named = variant.recipe if {"tokenizer", "vocab_size"} & variant.values.keys() else variants[0].recipe
        recipe = cell_recipe(variant.recipe, out, variant.folder, out / "data", **changes)
        return make_plan(recipe, hardware_of(runtime), vocab_size=expected_vocab_size(named, runtime))

    first = draft(variants[0]).stages["pretrain"]
    cells: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for variant in variants:
        recipe, own = variant.recipe, {}
        if not {"stages.pretrain.steps", "tokens_per_parameter"} & variant.values.keys():
            step_tokens = recipe.tokens_per_step if "tokens_per_step" in variant.values else first.tokens_per_step
            steps = max(1, round(first.steps * first.tokens_per_step / (step_tokens or first.tokens_per_step)))
            stages = cell_recipe(recipe, out, variant.folder, out).stages
            own = {"tokens_per_step": step_tokens, "stages": replace(stages, pretrain=replace(stages.pretrain, steps=steps))}
        plan = draft(variant, **own).to_dict()
        decided = {key: value for key, value in plan.items() if key not in ("recipe", "forecast")}
        apart = {name: variant.values[name] for name in OUTSIDE_THE_PLAN & variant.values.keys()}
        key = json.dumps([decided, apart], sort_keys=True, default=str)
        if key in seen:
            raise ValueError(f"{variant.name} trains exactly as {seen[key]}: vary what pretraining computes (--seeds is apart).")
        seen[key] = variant.name
        if {"tokenizer", "vocab_size"} & variant.values.keys():
            own |= {"tokenizer": recipe.tokenizer, "vocab_size": recipe.vocab_size}
        cells.append(own)
    return cells


def runtime_for(variant: Variant, runtime: Runtime) -> Runtime:
    """The runtime of a variant: another one where the dtype or fp8 is varied."""
    recipe = variant.recipe
    if not {"dtype", "fp8"} & variant.values.keys():
        return runtime
    own = start_runtime(
        device=str(runtime.device), dtype=recipe.dtype, threads=runtime.threads, fp8=recipe.fp8, choose_attention=choose_attention
    )
    return replace(runtime, dtype=own.dtype, fp8=own.fp8, peak_flops=own.peak_flops, attention=runtime.agree(own.attention))


def run_ablation(asked: Ablation, runtime: Runtime) -> dict[str, Any]:
    """Train all variants with all seeds; ablation.md and ablation.json in the folder grow with every cell. Returns the latter.

    A variant that diverges is said to, and the others go on.
    """
    out, variants = Path(asked.out), read_variants(asked)
    if (out / "plan.json").exists():
        raise ValueError(f"{out} is the folder of a run. Give another --out for the ablation.")
    own = plan_cells(variants, out, runtime)
    check_data(variants[0].recipe)
    with run_lock(out) if runtime.is_main else nullcontext():
        data, tok = prepare_shared(variants[0].recipe, runtime)
        record = open_record(out, data, tok, runtime)
        results: dict[str, dict[str, Any]] = {variant.name: {} for variant in variants}
        seeds = range(asked.seed, asked.seed + asked.seeds)
        runs = [(seed, variant, changes) for seed in seeds for variant, changes in zip(variants, own, strict=True)]
        for number, (seed, variant, changes) in enumerate(runs, 1):
            recipe = cell_recipe(variant.recipe, out, f"{variant.folder}-seed{seed}", data, seed=seed, **changes)
            if runtime.is_main:
                print(f"cell {number} of {len(runs)}: {variant.name}, seed {seed}", flush=True)
            try:
                results[variant.name][str(seed)] = train_cell(recipe, runtime_for(variant, runtime))
            except TrainingDiverged as error:
                print(f"{variant.name}, seed {seed} diverged: {error}")
                results[variant.name][str(seed)] = {"bpb": None}
            record |= {"baseline": variants[0].name, "cells": results, "variants": summarise(results, variants[0].name)}
            if runtime.is_main:
                write_json(out / "ablation.json", record)
                write_text(out / "ablation.md", page(record) + "\n")
    if runtime.is_main:
        print(f"\n{page(record)}\n\nsaved in {out}/ablation.md and ablation.json")
    return record


def prepare_shared(recipe: Recipe, runtime: Runtime) -> tuple[Path, Tokenizer]:
    """The data and the tokenizer in `recipe.out` that all cells share."""
    data = prepare_data(recipe, runtime)
    return data, prepare_tokenizer(recipe, runtime, data)


def open_record(out: Path, data: Path, tok: Tokenizer, runtime: Runtime) -> dict[str, Any]:
    """What ablation.json begins with. ValueError where the folder's cells stand on another text or tokenizer."""
    shards = open_corpus(data)
    shared = {"data": shards.fingerprint("train") + shards.fingerprint("val"), "tokenizer": tok.fingerprint}
    path = out / "ablation.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["shared"] != shared:
        raise ValueError(f"{out} holds an ablation on another text or tokenizer. Give another --out for this one.")
    return {"shared": shared}
