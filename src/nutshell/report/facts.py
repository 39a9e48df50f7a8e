"""Turns plan.json and metrics.jsonl of a run, finished or not, into report.json, report.md and report.html."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

from nutshell.files import write_json, write_text
from nutshell.metrics import read_metrics, seconds_by_stage
from nutshell.report.document import Figure, html, markdown
from nutshell.report.page import ordered, run_page
from nutshell.report.plots import CAPTIONS, caption, run_plots, shares, smoothed
from nutshell.report.provenance import gather_provenance
from nutshell.report.svg import draw, draw_shares

COUNTED = re.compile(r"(damaged|cropped|left_out|dropped|truncated)_")
"""Names of the counts of data that was not learned from; they grow from step to step."""


def build_report(
    run_folder: Path | str, usd_per_hour: float | None = None, environment: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes `report.json`, `report.html`, `report.md` and its plots `report/*.svg` into the run folder.

    Returns what is in report.json.

    `usd_per_hour` is the price of the machine (default: the plan's recipe has it, or no costs). `environment` replaces
    what `gather_provenance` finds. Raises ValueError if the folder is no run or holds no metrics yet.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a run folder, such as runs/demo")
    lines = read_metrics(folder)
    if not lines:
        raise ValueError(f"{folder} has no metrics.jsonl with any line; give a run folder in which a stage has begun")
    plan = read_json(folder / "plan.json")
    if usd_per_hour is None:
        usd_per_hour = (plan.get("recipe") or {}).get("usd_per_hour") or None
    report = summarise(lines, plan, environment or gather_provenance(), usd_per_hour) | {"evaluations": _evaluations(folder)}
    table = metric_table(report)
    blocks = run_page(folder.resolve().name, report, table, _figures(folder / "report", report, table, lines), lines)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(blocks))
    write_text(folder / "report.html", html(f"Report of {folder.resolve().name}", blocks))
    return report


def _figures(folder: Path, report: dict[str, Any], table: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Figure]:
    """The plots, those of an earlier report replaced: as files for Markdown, and to stand in the HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.svg"), *folder.glob("*.png")):
        old.unlink()
    figures = {}
    if groups := shares(report, table):
        marks = {"random guessing": table["baselines"], "target": table["targets"]}
        write_text(folder / "metrics.svg", draw_shares(CAPTIONS["metrics"], groups, marks, alone=True))
        figures["metrics"] = Figure(draw_shares(CAPTIONS["metrics"], groups, marks), CAPTIONS["metrics"], "report/metrics.svg")
    for name, plot in run_plots(steps_by_stage(lines), [line for line in lines if "eval" in line]).items():
        write_text(folder / f"{name}.svg", draw(plot, alone=True))
        figures[name] = Figure(draw(plot), caption(name, plot), f"report/{name}.svg")
    return figures


def summarise(
    lines: list[dict[str, Any]], plan: dict[str, Any], environment: dict[str, Any], usd_per_hour: float | None
) -> dict[str, Any]:
    """What report.json holds: plan, environment, seconds, usd, the last evaluation of each metric by stage (`stages`), and
    beside these `training` (speed and losses), `intervals` (95%, of that evaluation), `notes`, `baselines` and `targets`."""
    stages: dict[str, dict[str, float | None]] = {}
    baselines: dict[str, float] = {}
    goals: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    notes: dict[str, list[str]] = {}
    for line in lines:
        if "eval" in line:
            stages.setdefault(line["stage"], {}).update(line["eval"])
            baselines.update(line.get("baselines") or {})
            goals.setdefault(line["stage"], {}).update(line.get("targets") or {})
            intervals.setdefault(line["stage"], {}).update(line.get("intervals") or {})
            notes[line["stage"]] = line.get("notes") or []
    targets = {
        stage: {name: _verdict(name, stages[stage].get(name), goal) for name, goal in wanted.items()}
        for stage, wanted in goals.items()
        if wanted
    }
    seconds = seconds_by_stage(lines)
    usd = {} if usd_per_hour is None else {stage: round(s / 3600 * usd_per_hour, 4) for stage, s in seconds.items()}
    training = {stage: _training(records) for stage, records in steps_by_stage(lines).items()}
    return {
        "plan": plan, "environment": environment, "seconds": seconds, "usd": usd, "stages": stages, "training": training,
        "intervals": intervals, "notes": notes, "baselines": baselines, "targets": targets,
    }  # fmt: skip


def steps_by_stage(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of steps, in the order of the stages."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "loss" in line or "reward" in line:
            found.setdefault(line["stage"], []).append(line)
    return {stage: sorted(found[stage], key=lambda record: record["step"]) for stage in ordered(found)}


def metric_table(report: dict[str, Any]) -> dict[str, Any]:
    """`metrics` as {metric: {stage: value}}, with `baselines` and one target for each metric."""
    metrics: dict[str, dict[str, float | None]] = {}
    for stage in ordered(report["stages"]):
        for name, value in report["stages"][stage].items():
            metrics.setdefault(name, {})[stage] = value
    targets = {name: verdict["target"] for wanted in report["targets"].values() for name, verdict in wanted.items()}
    return {"metrics": metrics, "baselines": report["baselines"], "targets": targets}


def _evaluations(folder: Path) -> dict[str, Any]:
    """What `nutshell eval --out RUN/eval...` wrote, by folder; a file that cannot be read is passed over."""
    found = {}
    for path in sorted(folder.glob("eval*/results.json")):
        with contextlib.suppress(ValueError, OSError):
            found[path.parent.name] = json.loads(path.read_text("utf-8"))
    return found


def _verdict(name: str, value: float | None, target: float) -> dict[str, Any]:
    lower_is_better = any(word in name for word in ("bpb", "loss", "perplexity"))
    margin = None if value is None else target - value if lower_is_better else value - target
    return {"target": target, "value": value, "met": margin is not None and margin >= 0, "margin": margin}


def _training(records: list[dict[str, Any]]) -> dict[str, Any]:
    def median(field: str) -> float | None:
        # The first steps are slower: they warm up.
        values = [record[field] for record in records[min(3, len(records) - 1) :] if record.get(field) is not None]
        return statistics.median(values) if values else None

    def most(field: str) -> float | None:
        return max((record[field] for record in records if record.get(field) is not None), default=None)

    losses = [record.get("loss") for record in records]
    return {
        "steps": records[-1]["step"],
        "tokens": sum(record.get("tokens") or 0 for record in records),
        "first_loss": losses[0],
        "last_loss": smoothed(losses)[-1],
        "tokens_per_second": median("tokens_per_second"),
        "mfu": median("mfu"),
        "peak_memory_bytes": most("peak_memory_bytes"),
        "skipped_steps": sum(bool(record.get("skipped")) for record in records),
        "counts": {
            name: most(name) for name in dict.fromkeys(name for record in records for name in record if COUNTED.match(name))
        },
        **({"last_reward": smoothed([r.get("reward") for r in records])[-1]} if "reward" in records[-1] else {}),
        **{f: median(f) for f in ("gpu_utilisation", "gpu_memory_gib", "gpu_power_watts") if median(f) is not None},
    }


def read_json(path: Path) -> dict[str, Any]:
    """What is in a file of the run, or {} where there is none."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or delete it to get a report without it") from None
