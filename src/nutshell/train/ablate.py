"""`nutshell ablate`: variants of a recipe, pretrained on the same text with the same seeds, and compared.

plan/variants.py reads what is varied, train/cells.py trains one variant with one seed; here are the order and the comparison.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from nutshell.data.mixed import open_corpus
from nutshell.files import read_record, write_json, write_text
from nutshell.model.probe import choose_attention
from nutshell.plan.hardware import peak_flops
from nutshell.plan.plan import make_plan
from nutshell.plan.record import Plan
from nutshell.plan.studies import Ablation
from nutshell.plan.variants import Variant, read_variants
from nutshell.report.ablation import page, summarise
from nutshell.run.lock import run_lock
from nutshell.runtime import Runtime, start_runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.cells import cell_recipe, prepare_shared, train_cell
from nutshell.train.prepare import check_data, hardware_of
from nutshell.train.prepare_tokenizer import expected_vocab_size
from nutshell.train.stage import TrainingDiverged

OUTSIDE_THE_PLAN = {"tokenizer", "fp8", "dtype", "shard"}
"""Settings that may be varied although the plan does not show them."""


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
        device=str(runtime.device), dtype=recipe.dtype, threads=runtime.threads, fp8=recipe.fp8,
        choose_attention=choose_attention, gpu_peak_flops=peak_flops,
    )  # fmt: skip
    return replace(runtime, dtype=own.dtype, fp8=own.fp8, peak_flops=own.peak_flops, attention=runtime.agree(own.attention))


def run_ablation(asked: Ablation, runtime: Runtime) -> dict[str, Any]:
    """Train all variants with all seeds; ablation.md and ablation.json in the folder grow with every cell. Returns the latter.

    A variant that diverges is named, and the others go on.
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


def open_record(out: Path, data: Path, tok: Tokenizer, runtime: Runtime) -> dict[str, Any]:
    """What ablation.json begins with. ValueError where the folder's cells stand on another text or tokenizer."""
    shards = open_corpus(data)
    shared = {"data": shards.fingerprint("train") + shards.fingerprint("val"), "tokenizer": tok.fingerprint}
    found = read_record(out / "ablation.json", "Delete it: finished cells are not trained again.", "shared")
    if found and found["shared"] != shared:
        raise ValueError(f"{out} holds an ablation on another text or tokenizer. Give another --out for this one.")
    return {"shared": shared}
