"""The plots of the report, drawn without a display: one PNG each, skipped where a run has no such numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nutshell.metrics import DebiasedMean

Lines = dict[str, list[dict[str, Any]]]
"""The step records of each stage."""

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {"pretrain": "#0072B2", "midtrain": "#E69F00", "sft": "#009E73", "rl": "#CC79A7"}
GREY = "#8A8A8A"
_POINTS = 2000  # more than a plot has pixels
_GPU = (
    ("gpu_utilisation", "utilisation [%]", 100.0),
    ("gpu_memory_gib", "memory [GiB]", 1.0),
    ("gpu_power_watts", "power [W]", 1.0),
)


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Debiased moving average over about 2% of the values, or 8 of them, or a fifth where there are few."""
    mean = DebiasedMean(1 - 1 / max(1.0, 0.02 * len(values), min(8.0, len(values) / 5)))
    return [mean.update(value) for value in values]


def draw_all(folder: Path, steps: Lines, evaluations: list[dict[str, Any]], table: dict[str, Any]) -> dict[str, str]:
    """Draws what the run has into ``folder``; returns file names by the name of the plot.

    ``table`` holds ``metrics`` ({metric: {stage: value}}), ``baselines`` and ``targets`` of the tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[], Any]] = {
        "metrics": lambda: _metrics(table),
        "loss": lambda: _loss(steps),
        "validation": lambda: _validation(evaluations, steps),
        "reward": lambda: _reward(steps.get("rl", [])),
        "learning-rate": lambda: _over_steps(steps, [("lr", "learning rate", 1.0)]),
        "speed": lambda: _over_steps(steps, [("tokens_per_second", "tokens/s", 1.0), ("mfu", "MFU [%]", 100.0)], smooth=True),
        "gpu": lambda: _over_steps(steps, list(_GPU)),
    }
    written = {}
    for name, draw in plots.items():
        path = folder / f"{name}.png"
        figure = draw()
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            figure.savefig(path, dpi=110)
            written[name] = path.name
    return written


def _figure(columns: int = 1, rows: int = 1, width: float = 8.0, height: float = 3.0) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not at import: it takes half a second

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#E4E4E4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure, axes


def _thin(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """At most _POINTS of the points; None becomes a gap."""
    stride = max(1, -(-len(x) // _POINTS))
    return list(x[::stride]), [math.nan if value is None else value for value in y[::stride]]


def _curve(axis: Any, x: Sequence[float], y: Sequence[float | None], colour: str) -> None:
    """The values faint, their moving average strong. Few values are shown as they are."""
    if len(y) < 20:
        axis.plot(*_thin(x, y), color=colour, linewidth=1.8, marker="o", markersize=3)
    else:
        axis.plot(*_thin(x, y), color=colour, linewidth=0.7, alpha=0.3)
        axis.plot(*_thin(x, smoothed(y)), color=colour, linewidth=1.8)


def _colour(stage: str) -> str:
    return COLOURS.get(stage, GREY)


def _tokens(records: list[dict[str, Any]]) -> tuple[list[float], str]:
    """Tokens seen after each step and the name of their unit; the step where tokens are not known."""
    if not all(record.get("tokens") for record in records):
        return [record["step"] for record in records], "steps"
    seen = list(accumulate(float(record["tokens"]) for record in records))
    unit, name = next(((u, n) for u, n in ((1e9, "billion "), (1e6, "million "), (1e3, "thousand ")) if seen[-1] >= u), (1, ""))
    return [tokens / unit for tokens in seen], f"{name}tokens"


def _loss(steps: Lines) -> Any:
    stages = [stage for stage, records in steps.items() if stage != "rl" and any(r.get("loss") is not None for r in records)]
    if not stages:
        return None
    figure, axes = _figure(columns=len(stages))
    for axis, stage in zip(axes, stages, strict=True):
        x, name = _tokens(steps[stage])
        losses = [record.get("loss") for record in steps[stage]]
        _curve(axis, x, losses, _colour(stage))
        # The average decides the range: a single spike would flatten the curve.
        shown = [value for value in smoothed(losses) if value is not None]
        axis.set_ylim(0.95 * min(shown), 1.05 * max(shown))
        axis.set_title(stage, fontsize=10)
        axis.set_xlabel(name, fontsize=9)
    axes[0].set_ylabel("loss [nats per token]", fontsize=9)
    return figure


def _validation(evaluations: list[dict[str, Any]], steps: Lines) -> Any:
    found = [(line["step"], line["eval"]["val_bpb"]) for line in evaluations if line["eval"].get("val_bpb") is not None]
    if len(found) < 2:
        return None
    figure, (axis,) = _figure(height=2.8)
    tokens, name = _tokens(steps.get("pretrain", []) or [{"step": 0}])
    at = dict(zip((record["step"] for record in steps.get("pretrain", [])), tokens, strict=False))
    if not all(step in at for step, _ in found):
        at, name = {step: step for step, _ in found}, "steps"
    axis.plot([at[step] for step, _ in found], [bpb for _, bpb in found], color=_colour("pretrain"), marker="o", linewidth=1.8)
    for step, bpb in found:
        axis.annotate(f"{bpb:.3f}", (at[step], bpb), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axis.margins(y=0.2)
    axis.set_xlim(left=0)
    axis.set_xlabel(name, fontsize=9)
    axis.set_ylabel("bits per byte", fontsize=9)
    return figure


def _reward(records: list[dict[str, Any]]) -> Any:
    records = [record for record in records if record.get("reward") is not None]
    if not records:
        return None
    figure, (axis,) = _figure(height=2.8)
    _curve(axis, [record["step"] for record in records], [record["reward"] for record in records], _colour("rl"))
    axis.set_ylim(0, 1.02 if max(record["reward"] for record in records) <= 1 else None)
    axis.set_xlabel("RL steps", fontsize=9)
    axis.set_ylabel("mean reward", fontsize=9)
    return figure


def _over_steps(steps: Lines, wanted: list[tuple[str, str, float]], smooth: bool = False) -> Any:
    """One panel for each wanted field, all stages one after another on one axis of steps."""
    wanted = [w for w in wanted if any(_number(record, w[0]) is not None for records in steps.values() for record in records)]
    if not wanted:
        return None
    figure, axes = _figure(rows=len(wanted), height=2.5 if len(wanted) == 1 else 2.0)
    for axis, (field, label, factor) in zip(axes, wanted, strict=True):
        offset = 0
        for stage, records in steps.items():
            points = [(offset + r["step"], value * factor) for r in records if (value := _number(r, field)) is not None]
            if points:
                x, y = [x for x, _ in points], [y for _, y in points]
                if smooth:
                    _curve(axis, x, y, _colour(stage))
                else:
                    axis.plot(*_thin(x, y), color=_colour(stage), linewidth=1.6)
            axis.axvspan(offset, offset + records[-1]["step"], color=_colour(stage), alpha=0.05, linewidth=0)
            if axis is axes[0]:
                middle = offset + records[-1]["step"] / 2
                axis.text(
                    middle, 1.02, stage, fontsize=9, color=_colour(stage), ha="center", transform=axis.get_xaxis_transform()
                )
            offset += records[-1]["step"]
        axis.set_xlim(0, max(1, offset))
        axis.margins(y=0.12)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label, fontsize=9)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")
    axes[-1].set_xlabel("steps of all stages", fontsize=9)
    figure.align_ylabels()
    return figure


def _number(record: dict[str, Any], field: str) -> float | None:
    value = record.get(field)
    if isinstance(value, dict):
        value = next(iter(value.values()), None)
    return value


def _metrics(table: dict[str, Any]) -> Any:
    """Accuracies of each stage side by side, with random guessing and the target as ticks."""
    names = [name for name in table["metrics"] if name in table["baselines"]]
    stages = [stage for stage in COLOURS if any(table["metrics"][name].get(stage) is not None for name in names)]
    if not names or not stages:
        return None
    figure, (axis,) = _figure(height=3.2)
    width = 0.8 / len(stages)
    for number, stage in enumerate(stages):
        x = [position - 0.4 + (number + 0.5) * width for position in range(len(names))]
        heights = [100 * (table["metrics"][name].get(stage) or 0) for name in names]
        bars = axis.bar(x, heights, width * 0.92, color=_colour(stage), label="base (pretrain)" if stage == "pretrain" else stage)
        shown = ["" if table["metrics"][name].get(stage) is None else f"{h:.0f}" for name, h in zip(names, heights, strict=True)]
        axis.bar_label(bars, shown, fontsize=8, padding=2)
    for ticks, colour, style, label in (
        (table["baselines"], "#303030", ":", "random guessing"),
        (table["targets"], "#D55E00", "--", "target"),
    ):
        marked = [(position, ticks[name]) for position, name in enumerate(names) if ticks.get(name) is not None]
        if marked:
            axis.hlines(
                [100 * value for _, value in marked], [p - 0.45 for p, _ in marked], [p + 0.45 for p, _ in marked],
                color=colour, linestyle=style, linewidth=1.3, label=label, zorder=3,
            )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 108)
    axis.set_ylabel("correct [%]", fontsize=9)
    axis.grid(False, axis="x")
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index] in ("random guessing", "target"))
    axis.legend(
        [handles[index] for index in order], [labels[index] for index in order],
        fontsize=8, frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0),
    )  # fmt: skip
    return figure
