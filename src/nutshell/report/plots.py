"""The plots of one run: what is drawn over what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nutshell.metrics import DebiasedMean
from nutshell.report.svg import Bar, Plot, Series

Record = dict[str, Any]
Steps = dict[str, list[Record]]
"""The step records of each stage."""

COLOURS = {"pretrain": 0, "midtrain": 1, "sft": 2, "rl": 3, "dpo": 4}  # of plot.css; None of these: 5
HELD_OUT = "held out"
CAPTIONS = {
    "metrics": "Share of held-out items answered right after each stage, with 95% intervals where they are known.",
    "loss": "each step faint, its moving average strong",
    "validation": "Bits per byte on held-out text.",
    "reward": "Mean reward of the sampled answers, in RL.",
    "learning-rate": "Learning rate of the matrices.",
    "speed": "Speed of training.",
    "mfu": "Share of the processor's peak that training uses (MFU).",
    "gpu": "Readings of the first GPU, in percent of the most that was read.",
}


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Debiased moving average over about 2% of the values, or 8 of them, or a fifth where there are few."""
    mean = DebiasedMean(1 - 1 / max(1.0, 0.02 * len(values), min(8.0, len(values) / 5)))
    return [mean.update(value) for value in values]


def run_plots(steps: Steps, evaluations: list[Record]) -> dict[str, Plot]:
    """What the run has, by the name of its file; a plot without numbers is left out."""
    names = {stage: f"loss-{stage}" if stage != "pretrain" else "loss" for stage in steps if stage != "rl"}
    plots = {name: loss(stage, steps[stage], evaluations) for stage, name in names.items()}
    plots["validation"] = validation(evaluations, steps.get("pretrain", []))
    plots["reward"] = over_steps({"rl": steps.get("rl", [])}, "reward", "mean reward", "RL steps", smooth=True)
    plots["learning-rate"] = over_steps(steps, "lr", "learning rate")
    plots["speed"] = over_steps(steps, "tokens_per_second", "tokens/s", smooth=True)
    plots["mfu"] = over_steps(steps, "mfu", "MFU [%]", smooth=True, factor=100)
    plots["gpu"] = gpu(steps)
    return {name: plot for name, plot in plots.items() if plot is not None}


def caption(name: str, plot: Plot) -> str:
    if not name.startswith("loss"):
        return CAPTIONS[name]
    held_out = any(series.name == HELD_OUT for series in plot.series)
    return f"{plot.title}: {CAPTIONS['loss']}{'; dots are the loss on what is held out' * held_out}."


def curve(name: str, x: Sequence[float], y: Sequence[float | None], colour: int, smooth: bool = True) -> list[Series]:
    """The values faint and their moving average strong; only the values where they are few or not to be smoothed."""
    if not smooth or len(y) < 20:
        return [Series(name, x, y, colour, dots=smooth and len(y) < 20)]
    return [Series(name, x, y, colour, faint=True), Series(name, x, smoothed(y), colour)]


def evaluated(
    name: str, lines: list[Record], stage: str, metric: str, records: list[Record], x: Sequence[float], colour: int
) -> Series:
    """A metric of the evaluations of a stage as dots, at the `x` of the step that each of them followed."""
    at = dict(zip((record["step"] for record in records), x, strict=True))
    found = [line for line in lines if line["stage"] == stage and line["step"] in at and metric in (line.get("eval") or {})]
    return Series(name, [at[line["step"]] for line in found], [line["eval"][metric] for line in found], colour, dots=True)


def tokens_seen(records: list[Record]) -> tuple[list[float], str]:
    """Tokens seen after each step and the name of that axis; the step where tokens are not known."""
    if not all(record.get("tokens") for record in records):
        return [record["step"] for record in records], "steps"
    return list(accumulate(float(record["tokens"]) for record in records)), "tokens"


def loss(stage: str, records: list[Record], evaluations: list[Record]) -> Plot | None:
    """The loss of a stage, with the one on conversations or pairs that are held out."""
    losses = [record.get("loss") for record in records]
    if not any(value is not None for value in losses):
        return None
    x, name = tokens_seen(records)
    series = curve(stage, x, losses, COLOURS.get(stage, 5))
    held_out = evaluated(HELD_OUT, evaluations, stage, "pairs_loss" if stage == "dpo" else "val_loss", records, x, 5)
    if held_out.x:
        series.append(held_out)
    return Plot(f"Loss of {stage}", name, loss_label(stage), series)


def loss_label(stage: str) -> str:
    """DPO's loss is of a pair of answers (-log of the chance that the chosen one wins), the others' of a token."""
    return f"loss [nats per {'pair' if stage == 'dpo' else 'token'}]"


def validation(evaluations: list[Record], records: list[Record]) -> Plot | None:
    found = [(line["step"], line["eval"]["val_bpb"]) for line in evaluations if line["eval"].get("val_bpb") is not None]
    if len(found) < 2:
        return None
    x, name = tokens_seen(records) if records else ([], "steps")
    at = dict(zip((record["step"] for record in records), x, strict=True))
    if not all(step in at for step, _ in found):
        at, name = {step: step for step, _ in found}, "steps"
    series = Series("val_bpb", [at[step] for step, _ in found], [bpb for _, bpb in found], dots=True)
    return Plot("Validation", name, "bits per byte", [series])


def over_steps(
    steps: Steps, wanted: str, label: str, x_label: str = "steps of all stages", smooth: bool = False, factor: float = 1
) -> Plot | None:
    """One field, all stages one after another on one axis of steps."""
    series: list[Series] = []
    offset = 0
    for stage, records in steps.items():
        points = [(offset + r["step"], value * factor) for r in records if (value := _number(r, wanted)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            series += curve(stage, x, y, COLOURS.get(stage, 5), smooth)
        offset += records[-1]["step"] if records else 0
    tallest = max((y for one in series for y in one.y if y is not None), default=0.0)
    return Plot(label.split(" [")[0].capitalize(), x_label, label, series, 0, tallest * 1.05 or 1) if series else None


def gpu(steps: Steps) -> Plot | None:
    records, offset = [], 0
    for of_stage in steps.values():
        records += [(offset + record["step"], record) for record in of_stage]
        offset += of_stage[-1]["step"]
    series = []
    for colour, name in enumerate(("gpu_utilisation", "gpu_memory_gib", "gpu_power_watts")):
        points = [(step, value) for step, record in records if (value := _number(record, name)) is not None]
        if points:
            most = max(value for _, value in points) or 1
            series.append(
                Series(f"{name[4:]} (most: {most:.4g})", [x for x, _ in points], [100 * y / most for _, y in points], colour)
            )
    return Plot("GPU", "steps of all stages", "% of the most", series, 0, 105) if series else None


def _number(record: Record, name: str) -> float | None:
    value = record.get(name)
    return next(iter(value.values()), None) if isinstance(value, dict) else value


def shares(report: dict[str, Any], results: dict[str, Any]) -> dict[str, list[Bar]]:
    """Bars of each task whose chance level is known: one for each stage."""
    groups: dict[str, list[Bar]] = {}
    for name, by_stage in results["metrics"].items():
        if name not in results["baselines"]:
            continue
        for stage, value in by_stage.items():
            if value is not None:
                interval = report["intervals"].get(stage, {}).get(name)
                bar = Bar("base" if stage == "pretrain" else stage, value, interval and tuple(interval), COLOURS.get(stage, 5))
                groups.setdefault(name, []).append(bar)
    return groups
