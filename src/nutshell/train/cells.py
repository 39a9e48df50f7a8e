"""The cells of `nutshell ablate` and `nutshell scaling`: run folders with pretraining alone, on a shared text and tokenizer.

A finished cell is not trained again, so the same command always goes on.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nutshell.config import differences
from nutshell.metrics import read_metrics
from nutshell.plan.recipe import FREE_IN_A_RUN, Recipe
from nutshell.plan.record import load_plan
from nutshell.plan.stages import StageConfig, Stages
from nutshell.plan.variants import settings_of
from nutshell.runtime import Runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.pipeline import run_stages
from nutshell.train.prepare import prepare_data
from nutshell.train.prepare_tokenizer import prepare_tokenizer

UNREAD = {*FREE_IN_A_RUN, "data", "tokenizer", "eval_items", "eval_tasks", "eval_data", "device", "dtype", "threads", "scaling"}
"""Settings that may differ where a cell goes on: they stand elsewhere (text, tokenizer, dtype) or change no weight."""


def prepare_shared(recipe: Recipe, runtime: Runtime) -> tuple[Path, Tokenizer]:
    """The data and the tokenizer in `recipe.out` that all cells share."""
    data = prepare_data(recipe, runtime)
    return data, prepare_tokenizer(recipe, runtime, data)


def cell_recipe(recipe: Recipe, out: Path, name: str, data: Path, **changes: Any) -> Recipe:
    """The run of the cell `name`: pretraining alone, scored by bits per byte alone, on the data and tokenizer of `out`."""
    pretrain = replace(recipe.stages.pretrain, share=1.0)
    rl = replace(recipe.stages.rl, share=0.0, steps=0)
    stages = Stages(pretrain=pretrain, midtrain=StageConfig(), sft=StageConfig(), rl=rl)
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
