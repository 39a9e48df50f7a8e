"""The report of one run as blocks: tables, plots and samples, from what report.json holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nutshell.files import STAGES
from nutshell.metrics import duration
from nutshell.report.document import Block, Figure, Heading, Items, Sample, Table, Text

COLUMN_NAMES = {"pretrain": "base"}
SAMPLES_PER_STAGE = 6
SAMPLE_CHARACTERS = 600


def ordered(stages: Iterable[str]) -> list[str]:
    """Stages in the order of the pipeline; others follow as they come."""
    given = list(stages)
    return [stage for stage in STAGES if stage in given] + [stage for stage in given if stage not in STAGES]


def run_page(
    name: str, report: dict[str, Any], results: dict[str, Any], figures: dict[str, Figure], lines: list[dict[str, Any]]
) -> list[Block]:
    """The whole page. `results` is that of `metric_table`, `figures` the plots that there are."""

    def plots(*names: str) -> list[Block]:
        return [figure for wanted in names for name, figure in figures.items() if name == wanted or name.startswith(wanted + "-")]

    sections: dict[str, list[Block]] = {
        "Results": [*_metrics(report, results), *_verdicts(report), *plots("metrics"), *_evaluations(report)],
        "Training": [*_training(report), *plots("loss", "validation", "reward", "learning-rate")],
        "Data": _remarks(lines),
        "Time, speed and cost": [_times(report), *plots("speed", "mfu", "gpu")],
        "Model": _model(report["plan"]),
        "Plan": _plan(report["plan"]),
        "Samples": _samples(lines),
        "Environment": _environment(report["environment"]),
    }
    blocks: list[Block] = [Heading(f"Report of `{name}`", 1), Text(_summary(report))]
    for title, section in sections.items():
        blocks += [Heading(title), *section] if section else []
    return blocks


def _summary(report: dict[str, Any]) -> str:
    seconds, plan, trained = report["seconds"], report["plan"], report["training"]
    parameters = sum((plan.get("parameters") or {}).values())
    facts = [f"{len(trained)} of {len(STAGES) - ('dpo' not in trained)} stages trained"]  # most runs have no preferences
    if parameters:
        facts.append(f"{count(parameters)} parameters")
    tokens = sum(training["tokens"] for training in trained.values())
    if tokens:
        facts.append(f"{count(tokens)} tokens")
    facts.append(f"{duration(sum(seconds.values()))} in all")
    if report["usd"]:
        facts.append(f"${sum(report['usd'].values()):.2f}")
    peak = max((training["peak_memory_bytes"] or 0 for training in trained.values()), default=0)
    if peak:
        facts.append(f"{peak / 2**30:.2f} GiB peak memory")
    return ", ".join(facts) + "."


def _metrics(report: dict[str, Any], table: dict[str, Any]) -> list[Block]:
    stages = ordered(report["stages"])
    if not stages:
        return [Text("No evaluation yet.")]
    rows = []
    for name, values in table["metrics"].items():
        share = name in table["baselines"]
        scores = [score(values.get(stage), report["intervals"].get(stage, {}).get(name), share) for stage in stages]
        rows.append([name, number(table["baselines"].get(name), share), *scores, number(table["targets"].get(name), share)])
    notes = [Text("In brackets: where the true share lies with 95% confidence.")] if any(report["intervals"].values()) else []
    return [Table(["metric", "random", *(COLUMN_NAMES.get(stage, stage) for stage in stages), "target"], rows), *notes]


def _verdicts(report: dict[str, Any]) -> list[Block]:
    """Targets met or missed, and by how much, for the last two stages that had any."""
    lines = []
    for stage in ordered(report["targets"])[-2:]:
        for name, verdict in report["targets"][stage].items():
            share = name in report["baselines"]
            value, target = number(verdict["value"], share), number(verdict["target"], share)
            if verdict["margin"] is None:
                lines.append(f"after {stage}, **{name}** was not measured (target {target})")
                continue
            points = f"{abs(verdict['margin']) * 100:.1f} points" if share else f"{abs(verdict['margin']):.4g}"
            word = "met" if verdict["met"] else "**missed**"
            lines.append(f"after {stage}, {name} {value}: target {target} {word} by {points}")
    stages_of: dict[str, list[str]] = {}  # most notes come after every stage
    for stage, notes in report["notes"].items():
        for note in notes:
            stages_of.setdefault(note, []).append(stage)
    lines += [f"{note} (after {', '.join(stages)})" for note, stages in stages_of.items()]
    return [Items(lines)] if lines else []


def _evaluations(report: dict[str, Any]) -> list[Block]:
    """What `nutshell eval --out RUN/eval...` left in the run folder."""
    blocks: list[Block] = []
    for folder, found in report["evaluations"].items():
        tasks = {name: result for name, result in found["results"].items() if "accuracy" in result}
        rows = [
            [name, score(r["accuracy"], r.get("interval"), True), number(r.get("baseline"), True), f"{r['count']:,}"]
            for name, r in tasks.items()
        ]
        settings = ", ".join(f"{name} {value}" for name, value in found.get("settings", {}).items())
        blocks += [Heading(f"`nutshell eval` in {folder}", 3), Text(f"Model {found.get('model', 'unknown')}: {settings}.")]
        blocks += [Table(["task", "score", "random", "items"], rows)]
        notes = [f"{name}: {note}" for name, result in tasks.items() for note in result.get("notes", [])]
        blocks += [Items(notes)] if notes else []
    return blocks


def _training(report: dict[str, Any]) -> list[Block]:
    counted = list(dict.fromkeys(name for training in report["training"].values() for name in training.get("counts", {})))
    rows = []
    for stage, training in report["training"].items():
        tokens = count(training["tokens"]) if training["tokens"] else "n/a"
        counts = [count(training.get("counts", {}).get(name) or 0) for name in counted]
        losses = [number(training["first_loss"]), number(training["last_loss"])]
        rows.append([stage, f"{training['steps']:,}", tokens, *losses, str(training["skipped_steps"]), *counts])
    head = ["stage", "steps", "tokens", "first loss", "last loss (smoothed)", "skipped steps"]
    return [Table(head + [name.replace("_", " ") for name in counted], rows) if rows else Text("No step yet.")]


def _remarks(lines: list[dict[str, Any]]) -> list[Block]:
    """What was said of the data: formats, mixtures, and what was left out."""
    remarks = [f"{line['stage']}: {line['remark']}" for line in lines if "remark" in line]
    return [Items(remarks)] if remarks else []


def _times(report: dict[str, Any]) -> Block:
    usd = report["usd"]
    rows = []
    for stage, seconds in report["seconds"].items():
        training = report["training"].get(stage, {})
        rate, mfu, peak = (training.get(field) for field in ("tokens_per_second", "mfu", "peak_memory_bytes"))
        row = [stage, duration(seconds), f"${usd.get(stage, 0):.2f}" if usd else "", f"{rate:,.0f}" if rate else ""]
        rows.append([*row, f"{mfu:.1%}" if mfu else "n/a" if training else "", f"{peak / 2**30:.2f}" if peak else ""])
    cost = f"**${sum(usd.values()):.2f}**" if usd else ""
    rows.append(["**all**", f"**{duration(sum(report['seconds'].values()))}**", cost, "", "", ""])
    return Table(["stage", "time", "cost", "tokens/s", "MFU", "peak memory [GiB]"], rows)


def _model(plan: dict[str, Any]) -> list[Block]:
    parameters, shape = plan.get("parameters") or {}, plan.get("model") or {}
    whole = sum(parameters.values())
    rows = [[group, f"{count:,}", f"{count / whole:.1%}"] for group, count in parameters.items()]
    fields = ("architecture", "depth", "width", "heads", "kv_heads", "head_dim", "context", "vocab_size", "window_pattern")
    described = ", ".join(f"{field.replace('_', ' ')} {shape[field]}" for field in fields if field in shape)
    text: list[Block] = [Text(described[:1].upper() + described[1:] + ".")] if described else []
    return [*text, Table(["group", "parameters", "share"], [*rows, ["**all**", f"**{whole:,}**", ""]])] if rows else text


def _plan(plan: dict[str, Any]) -> list[Block]:
    """What was decided before training: the steps of each stage, and the recipe that it came from."""
    stages = plan.get("stages") or {}
    rows = [
        [name, f"{stage['steps']:,}", f"{stage['tokens_per_step']:,}", duration(stage["seconds"]) if stage.get("seconds") else ""]
        for name, stage in stages.items()
        if stage.get("steps")
    ]
    table = [Table(["stage", "steps planned", "tokens a step", "time expected"], rows)] if rows else []
    recipe = [
        f"`{name} = {value!r}`" for name, value in flat(plan.get("recipe") or {}).items() if value not in ("", None, [], {})
    ]
    return [*table, Text("The recipe: " + ", ".join(recipe) + ".")] if recipe else [*table]


def flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def _samples(lines: list[dict[str, Any]]) -> list[Block]:
    """The newest samples of each stage, the tasks in turn."""
    newest = {line["stage"]: line["samples"] for line in lines if line.get("samples")}
    blocks: list[Block] = []
    for stage in ordered(newest):
        by_task: dict[str, list[dict[str, Any]]] = {}
        for sample in newest[stage]:
            by_task.setdefault(sample.get("task", ""), []).append(sample)
        longest = max(map(len, by_task.values()))
        turns = [sample for turn in range(longest) for group in by_task.values() for sample in group[turn : turn + 1]]
        blocks.append(Heading(f"After {stage}", 3))
        blocks += [_sample(sample) for sample in turns[:SAMPLES_PER_STAGE]]
    return blocks


def _sample(sample: dict[str, Any]) -> Block:
    shown = [("prompt", "prompt"), ("question", "prompt"), ("reply", "reply"), ("answer", "wanted")]
    text = "\n".join(f"{label}: {cut(sample[field])}" for field, label in shown if sample.get(field) is not None)
    verdict = ("(right)" if sample["right"] else "(wrong)") if "right" in sample else ""
    return Sample(" ".join(filter(None, [sample.get("task"), verdict])), text)


def _environment(environment: dict[str, Any]) -> list[Block]:
    lines = []
    for name, value in environment.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if text not in (None, ""):
            lines.append(f"{name.replace('_gib', ' [GiB]').replace('_', ' ')}: {text}")
    return [Text("The machine that wrote this report:"), Items(lines)] if lines else []


def score(value: float | None, interval: list[float] | None, share: bool) -> str:
    """A value and, in brackets, its interval."""
    text = number(value, share)
    if not text or not interval:
        return text
    low, high = interval
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})" if share else f"{text} ({low:.4f} to {high:.4f})"


def number(value: float | None, share: bool = False) -> str:
    return "" if value is None else f"{value:.1%}" if share else f"{value:.4f}"


def count(number: float) -> str:
    """A large number with its unit: 2.5M."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= unit), (1.0, ""))
    return f"{number / unit:.3g}{name}"


def cut(text: Any) -> str:
    """The text, or its beginning where it is long."""
    text = str(text)
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " ..."
