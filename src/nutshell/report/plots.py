"""The plots of the report, one PNG each, drawn without a display; a plot without numbers is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nutshell.metrics import DebiasedMean

Record = dict[str, Any]
Steps = dict[str, list[Record]]
"""The step records of each stage."""

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
COLOURS = dict(zip(("pretrain", "midtrain", "sft", "rl", "dpo"), PALETTE, strict=False))
GREY = "#8A8A8A"
_POINTS = 2000  # more than a plot has pixels
_SPEED = (("tokens_per_second", "tokens/s", 1.0), ("mfu", "MFU [%]", 100.0))
_GPU = (
    ("gpu_utilisation", "utilisation [%]", 100.0),
    ("gpu_memory_gib", "memory [GiB]", 1.0),
    ("gpu_power_watts", "power [W]", 1.0),
)


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Debiased moving average over about 2% of the values, or 8 of them, or a fifth where there are few."""
    mean = DebiasedMean(1 - 1 / max(1.0, 0.02 * len(values), min(8.0, len(values) / 5)))
    return [mean.update(value) for value in values]


def unit_of(number: float) -> tuple[float, str]:
    """The unit to print a large number in: (1e6, "M") for 2,500,000."""
    return next(((unit, name) for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= unit), (1.0, ""))


def draw_all(folder: Path, steps: Steps, evaluations: list[Record], table: dict[str, Any]) -> dict[str, str]:
    """Draws what the run has into ``folder``; returns file names by the name of the plot.

    ``table`` holds ``metrics`` ({metric: {stage: value}}), ``baselines`` and ``targets`` of the tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "metrics": _metrics(table),
        "loss": _loss(steps, evaluations),
        "validation": _validation(evaluations, steps.get("pretrain", [])),
        "reward": _reward(steps.get("rl", [])),
        "learning-rate": _over_steps(steps, [("lr", "learning rate", 1.0)]),
        "speed": _over_steps(steps, _SPEED, smooth=True),
        "gpu": _over_steps(steps, _GPU),
    }
    for name, plot in plots.items():
        if plot is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
        else:
            plot.savefig(folder / f"{name}.png", dpi=110)
    return {name: f"{name}.png" for name, plot in plots.items() if plot is not None}


def figure(columns: int = 1, rows: int = 1, height: float = 3.0) -> tuple[Any, list[Any]]:
    """A figure and its panels, in the report's style; `height` in inches of each row."""
    from matplotlib.figure import Figure  # not at import: it takes half a second

    figure = Figure(figsize=(8.0, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(True, color="#E4E4E4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9)
    return figure, panels


def _curve(panel: Any, x: Sequence[float], y: Sequence[float | None], stage: str, smooth: bool = True) -> None:
    """The values of a stage faint and their moving average strong; only the values where they are few or not to be smoothed."""
    stride = max(1, -(-len(x) // _POINTS))

    def line(values: Sequence[float | None], **style: Any) -> None:  # None becomes a gap
        shown = [math.nan if value is None else value for value in values[::stride]]
        panel.plot(x[::stride], shown, color=COLOURS.get(stage, GREY), **style)

    if not smooth:
        line(y, linewidth=1.6)
    elif len(y) < 20:
        line(y, linewidth=1.8, marker="o", markersize=3)
    else:
        line(y, linewidth=0.7, alpha=0.3)
        line(smoothed(y), linewidth=1.8)


def _tokens(records: list[Record]) -> tuple[list[float], str]:
    """Tokens seen after each step and the name of their unit; the step where tokens are not known."""
    if not all(record.get("tokens") for record in records):
        return [record["step"] for record in records], "steps"
    seen = list(accumulate(float(record["tokens"]) for record in records))
    unit, name = unit_of(seen[-1])
    return [tokens / unit for tokens in seen], f"tokens [{name}]" if name else "tokens"


def _loss(steps: Steps, evaluations: list[Record]) -> Any:
    """The loss of each stage but RL, with the one on conversations that are held out."""
    stages = [stage for stage, records in steps.items() if stage != "rl" and any(r.get("loss") is not None for r in records)]
    if not stages:
        return None
    plot, panels = figure(columns=len(stages))
    for panel, stage in zip(panels, stages, strict=True):
        x, name = _tokens(steps[stage])
        losses = [record.get("loss") for record in steps[stage]]
        _curve(panel, x, losses, stage)
        # The average decides the range: a single spike would flatten the curve.
        shown = [value for value in smoothed(losses) if value is not None]
        at = dict(zip((record["step"] for record in steps[stage]), x, strict=True))
        held_out = [(at[line["step"]], line["eval"].get("val_loss")) for line in evaluations
                    if line["stage"] == stage and line["step"] in at and line["eval"].get("val_loss") is not None]  # fmt: skip
        if held_out:
            panel.plot(*zip(*held_out, strict=True), color="black", marker="o", markersize=3, linewidth=1, label="held out")
            panel.legend(frameon=False, fontsize=8)
            shown += [loss for _, loss in held_out]
        panel.set(title=stage, xlabel=name, ylim=(0.95 * min(shown), 1.05 * max(shown)))
    panels[0].set_ylabel("loss [nats per token]")
    return plot


def _validation(evaluations: list[Record], records: list[Record]) -> Any:
    found = [(line["step"], line["eval"]["val_bpb"]) for line in evaluations if line["eval"].get("val_bpb") is not None]
    if len(found) < 2:
        return None
    plot, (panel,) = figure()
    x, name = _tokens(records) if records else ([], "steps")
    at = dict(zip((record["step"] for record in records), x, strict=True))
    if not all(step in at for step, _ in found):
        at, name = {step: step for step, _ in found}, "steps"
    panel.plot([at[step] for step, _ in found], [bpb for _, bpb in found], color=COLOURS["pretrain"], marker="o", linewidth=1.8)
    for step, bpb in found:
        panel.annotate(f"{bpb:.3f}", (at[step], bpb), xytext=(5, 5), textcoords="offset points", fontsize=8)
    panel.margins(y=0.2)
    panel.set(xlabel=name, ylabel="bits per byte", xlim=(0, None))
    return plot


def _reward(records: list[Record]) -> Any:
    points = [(record["step"], record["reward"]) for record in records if record.get("reward") is not None]
    if not points:
        return None
    plot, (panel,) = figure()
    x, rewards = zip(*points, strict=True)
    _curve(panel, x, rewards, "rl")
    panel.set(xlabel="RL steps", ylabel="mean reward", ylim=(0, 1.02 if max(rewards) <= 1 else None))
    return plot


def _over_steps(steps: Steps, wanted: Sequence[tuple[str, str, float]], smooth: bool = False) -> Any:
    """One panel for each wanted field, all stages one after another on one axis of steps."""
    wanted = [w for w in wanted if any(_number(record, w[0]) is not None for records in steps.values() for record in records)]
    if not wanted:
        return None
    plot, panels = figure(rows=len(wanted), height=2.5 if len(wanted) == 1 else 2.0)
    for panel, (field, label, factor) in zip(panels, wanted, strict=True):
        offset = 0
        for stage, records in steps.items():
            points = [(offset + r["step"], value * factor) for r in records if (value := _number(r, field)) is not None]
            if points:
                x, y = zip(*points, strict=True)
                _curve(panel, x, y, stage, smooth)
            colour, length = COLOURS.get(stage, GREY), records[-1]["step"]
            panel.axvspan(offset, offset + length, color=colour, alpha=0.05, linewidth=0)
            if panel is panels[0]:
                place = {"ha": "center", "transform": panel.get_xaxis_transform()}
                panel.text(offset + length / 2, 1.02, stage, fontsize=9, color=colour, **place)
            offset += length
        panel.margins(y=0.12)
        panel.set(ylabel=label, xlim=(0, max(1, offset)), ylim=(0, None))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")
    panels[-1].set_xlabel("steps of all stages")
    plot.align_ylabels()
    return plot


def _number(record: Record, field: str) -> float | None:
    value = record.get(field)
    return next(iter(value.values()), None) if isinstance(value, dict) else value


def _metrics(table: dict[str, Any]) -> Any:
    """Accuracies of each stage side by side, with random guessing and the target as ticks."""
    names = [name for name in table["metrics"] if name in table["baselines"]]
    stages = [stage for stage in COLOURS if any(table["metrics"][name].get(stage) is not None for name in names)]
    if not names or not stages:
        return None
    plot, (panel,) = figure()
    width = 0.8 / len(stages)
    for number, stage in enumerate(stages):
        x = [position - 0.4 + (number + 0.5) * width for position in range(len(names))]
        values = [table["metrics"][name].get(stage) for name in names]
        label = "base (pretrain)" if stage == "pretrain" else stage
        bars = panel.bar(x, [100 * (value or 0) for value in values], width * 0.92, color=COLOURS[stage], label=label)
        panel.bar_label(bars, ["" if value is None else f"{100 * value:.0f}" for value in values], fontsize=8, padding=2)
    for ticks, colour, style, label in (
        (table["baselines"], "#303030", ":", "random guessing"),
        (table["targets"], "#D55E00", "--", "target"),
    ):
        marked = [(position, 100 * ticks[name]) for position, name in enumerate(names) if ticks.get(name) is not None]
        if marked:
            at, shares = zip(*marked, strict=True)
            left, right = [position - 0.45 for position in at], [position + 0.45 for position in at]
            panel.hlines(shares, left, right, color=colour, linestyle=style, label=label, zorder=3)
    panel.set_xticks(range(len(names)), names)
    panel.set(ylim=(0, 108), ylabel="correct [%]")
    panel.grid(False, axis="x")
    panel.legend(fontsize=8, frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return plot
