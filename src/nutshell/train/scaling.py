"""`nutshell scaling`: small runs of several depths and horizons, and the law that their bits per byte follow.

Made of the cells of train/cells.py: data and tokenizer are shared, and the same command always goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nutshell.data.shards import read_manifest
from nutshell.files import read_record, write_json, write_text
from nutshell.model.flops import matrix_parameters
from nutshell.plan.cost import VALIDATION_SHARE, saving_seconds, validation
from nutshell.plan.hardware import Timing
from nutshell.plan.law import PACKAGED, Point, fit, law_record, text_fingerprint
from nutshell.plan.recipe import Recipe, quantity
from nutshell.plan.record import load_plan
from nutshell.plan.shape import default_vocab_size, make_shape
from nutshell.plan.studies import Sweep
from nutshell.report.scaling import page, sweep_plot
from nutshell.report.svg import draw
from nutshell.runtime import Runtime
from nutshell.train.calibrate import time_depth, timed_rows
from nutshell.train.cells import cell_recipe, prepare_shared, train_cell
from nutshell.train.prepare import check_data, hardware_of

SHARES = (1.0, 0.5, 0.25)  # horizons on a budget: what it allows, and these parts of it
SHORTEST = 100_000  # tokens; less is hardly a run
CELL_SECONDS = 1.0  # of opening and closing a run
TIMED_HORIZON = 1e6  # tokens whose batch is timed, before the horizon is known


def sweep_cell(sweep: Sweep, depth: int, tokens: float, vocab_size: int, data: Path) -> Recipe:
    """The run of one cell: `tokens` tokens at this depth."""
    name = f"depth{depth}-{tokens:.3g}".replace("+", "")
    cell = cell_recipe(sweep, Path(sweep.out), name, data, depth=depth)
    horizon = tokens / matrix_parameters(make_shape(cell, depth, vocab_size))
    stages = replace(cell.stages, pretrain=replace(cell.stages.pretrain, steps=0))
    return replace(cell, tokens_per_parameter=horizon, stages=stages)


def affordable_horizon(timings: dict[int, Timing], seconds: float, parameters: dict[int, int]) -> float:
    """The longest horizon in tokens, to two digits, such that all depths at all `SHARES` of it take `seconds` together, with
    validations and checkpoints."""
    times, each = validation(Recipe(), 0)  # the fewest tokens; those of longer runs are a share of their time
    fixed = sum(
        len(SHARES) * (CELL_SECONDS + saving_seconds(parameters[depth], times))
        + len(SHARES) * times * each / (timing.forward_tokens_per_second or 3 * timing.tokens_per_second)
        for depth, timing in timings.items()
    )
    a_token = (1 + VALIDATION_SHARE) * sum(SHARES) * sum(1 / timing.tokens_per_second for timing in timings.values())
    tokens = max((seconds - fixed) / a_token, SHORTEST / min(SHARES))
    return float(f"{tokens:.2g}")


def plan_sweep(sweep: Sweep, runtime: Runtime, vocab_size: int, seconds_left: float) -> dict[str, Any]:
    """The cells, cheapest first, each with its expected seconds; saved as sweep.json so that going on means the same cells.

    Other depths and named horizons on the same data make another table, in which finished cells count.
    """
    path = Path(sweep.out) / "sweep.json"
    asked = {"depths": list(sweep.depths), "horizons": list(sweep.horizons), "data": sweep.data, "vocab_size": vocab_size}
    if found := read_record(path, "Delete it: finished cells are not trained again.", "asked", "cells"):
        if found["asked"] == asked:
            return found
        if not sweep.horizons or any(found["asked"][key] != asked[key] for key in ("data", "vocab_size")):
            raise ValueError(
                f"{sweep.out} holds a sweep of {found['asked']}, not of {asked}. Give another --out for a new one, or "
                "name --horizons on the same data to go on with its cells."
            )
    timings, parameters = {}, {}
    for depth in sweep.depths:
        shape = make_shape(sweep, depth, vocab_size)
        parameters[depth] = matrix_parameters(shape)
        rows = timed_rows(sweep, runtime, hardware_of(runtime), shape, TIMED_HORIZON)
        timings[depth] = time_depth(shape, rows, runtime, sweep)
    if sweep.horizons:
        horizons = sorted(quantity(h) for h in sweep.horizons)
    else:
        horizons = [share * affordable_horizon(timings, seconds_left, parameters) for share in sorted(SHARES)]
    cells = [
        {"depth": depth, "tokens": tokens, "seconds": round(tokens / timings[depth].tokens_per_second, 1)}
        for depth in sweep.depths
        for tokens in horizons
    ]
    sweep_plan = {"asked": asked, "cells": sorted(cells, key=lambda cell: cell["seconds"])}
    if runtime.is_main:
        write_json(path, sweep_plan)
    return runtime.agree(sweep_plan)


def point_of(recipe: Recipe, result: dict[str, Any]) -> Point:
    """A finished cell as a point of the fit."""
    plan = load_plan(Path(recipe.out))
    if plan is None or result["bpb"] is None:
        raise ValueError(f"{recipe.out} ended with a bpb that is not finite. Delete it and run the same sweep again.")
    parameters = matrix_parameters(plan.model)
    return Point(parameters=parameters, tokens=plan.forecast.tokens, flops=plan.forecast.flops, bpb=result["bpb"])


def run_sweep(sweep: Sweep, runtime: Runtime, *, packaged: Path = PACKAGED) -> dict[str, Any]:
    """All cells that the budget has time for, then the fit: scaling.json, scaling.md and scaling.svg in the sweep's folder.

    With `sweep.refresh` the fit becomes the one that plans use (`packaged`). ValueError where too few cells were run for a fit.
    """
    started, out = time.monotonic(), Path(sweep.out)
    check_data(sweep)
    # The largest depth decides the vocabulary, which all depths share.
    deepest = Recipe(depth=max(sweep.depths), vocab_size=sweep.vocab_size)
    sized = sweep if sweep.tokenizer else replace(sweep, vocab_size=default_vocab_size(deepest, runtime.device.type))
    data, tok = prepare_shared(sized, runtime)
    budget = sweep.budget_seconds() or float("inf")
    cells = plan_sweep(sweep, runtime, tok.vocab_size, runtime.agree(budget - (time.monotonic() - started)))["cells"]
    points, left_out = [], []
    for cell in cells:
        recipe = sweep_cell(sweep, cell["depth"], cell["tokens"], tok.vocab_size, data)
        begun = (Path(recipe.out) / "plan.json").exists()
        left = runtime.agree(budget - (time.monotonic() - started))
        # A budget chose the cells itself, unless horizons were named; what was begun is finished.
        if sweep.horizons and not begun and cell["seconds"] > left:
            left_out.append(cell)
            continue
        points.append(point_of(recipe, train_cell(recipe, runtime)))
    text = text_fingerprint(sweep, read_manifest(data))
    law = fit(points, text=Path(sweep.data).name, fingerprint=text, vocab_size=tok.vocab_size)
    if runtime.is_main:
        write_json(out / "scaling.json", law_record(law, points))
        write_text(out / "scaling.md", page(law, points, left_out) + "\n\n![The sweep and its fit](scaling.svg)\n")
        write_text(out / "scaling.svg", draw(sweep_plot(law, points), alone=True))
        if sweep.refresh:
            refresh(out, packaged)
        print(page(law, points, left_out))
    return law_record(law, points)


def refresh(out: Path, packaged: Path) -> None:
    """Make this fit the one that plans use; the one before is kept in the sweep's folder."""
    try:
        if packaged.exists():
            shutil.copyfile(packaged, out / "scaling-before.json")
        write_json(packaged, json.loads((out / "scaling.json").read_text(encoding="utf-8")))
        print(f"nutshell plan now expects what {out}/scaling.json says.")
    except OSError as error:
        print(f"{packaged} cannot be written ({error}). To use this fit: nutshell plan --scaling {out}/scaling.json")
