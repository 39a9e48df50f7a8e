"""The text of report.md: tables, plots and samples, from what report.json holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from nutshell.metrics import duration
from nutshell.report.plots import unit_of

STAGES = ("pretrain", "midtrain", "sft", "dpo", "rl")
COLUMN_NAMES = {"pretrain": "base"}
_SAMPLES_PER_STAGE = 6
_SAMPLE_CHARACTERS = 600
_CAPTIONS = {
    "metrics": "Share of held-out items answered right after each stage.",
    "loss": "Training loss: each step faint, its moving average strong; dots are the loss on held-out conversations.",
    "validation": "Bits per byte on held-out text.",
    "reward": "Mean reward of the sampled answers, in RL.",
    "learning-rate": "Learning rate of the matrices.",
    "speed": "Speed of training.",
    "gpu": "Readings of the first GPU.",
}


def ordered(stages: Iterable[str]) -> list[str]:
    """Stages in the order of the pipeline; others follow as they come."""
    given = list(stages)
    return [stage for stage in STAGES if stage in given] + [stage for stage in given if stage not in STAGES]


def write_page(
    name: str, report: dict[str, Any], results: dict[str, Any], plots: dict[str, str], lines: list[dict[str, Any]]
) -> str:
    """The whole page as Markdown. `results` is that of `metric_table`, `plots` the file names of the plots there are."""

    def plot(which: str) -> str:
        return f"![{_CAPTIONS[which]}](report/{plots[which]})\n\n*{_CAPTIONS[which]}*" if which in plots else ""

    sections = [
        ("", f"# Report of `{name}`\n\n{_summary(report)}"),
        ("Results", _join(_metrics(report, results), _verdicts(report), plot("metrics"))),
        ("Training", _join(_training(report), plot("loss"), plot("validation"), plot("reward"), plot("learning-rate"))),
        ("Data", _remarks(lines)),
        ("Time, speed and cost", _join(_times(report), plot("speed"), plot("gpu"))),
        ("Model", _model(report["plan"])),
        ("Samples", _samples(lines)),
        ("Environment", _environment(report["environment"])),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text) + "\n"


def _summary(report: dict[str, Any]) -> str:
    seconds, plan = report["seconds"], report["plan"]
    parameters = sum((plan.get("parameters") or {}).values())
    trained = report["training"]
    facts = [f"{len(trained)} of {len(STAGES) - ('dpo' not in trained)} stages trained"]  # most runs have no preferences
    if parameters:
        facts.append(f"{_count(parameters)} parameters")
    tokens = sum(training["tokens"] for training in report["training"].values())
    if tokens:
        facts.append(f"{_count(tokens)} tokens")
    facts.append(f"{duration(sum(seconds.values()))} in all")
    if report["usd"]:
        facts.append(f"${sum(report['usd'].values()):.2f}")
    peak = max((training["peak_memory_bytes"] or 0 for training in report["training"].values()), default=0)
    if peak:
        facts.append(f"{peak / 2**30:.2f} GiB peak memory")
    return ", ".join(facts) + "."


def _metrics(report: dict[str, Any], table: dict[str, Any]) -> str:
    stages = ordered(report["stages"])
    if not stages:
        return "No evaluation yet."
    rows = []
    for name, values in table["metrics"].items():
        share = name in table["baselines"]
        numbers = [table["baselines"].get(name), *(values.get(stage) for stage in stages), table["targets"].get(name)]
        rows.append([name, *(_value(number, share) for number in numbers)])
    return markdown_table(["metric", "random", *(COLUMN_NAMES.get(stage, stage) for stage in stages), "target"], rows)


def _verdicts(report: dict[str, Any]) -> str:
    """Targets met or missed, and by how much, for the last two stages that had any."""
    lines = []
    for stage in ordered(report["targets"])[-2:]:
        for name, verdict in report["targets"][stage].items():
            share = name in report["baselines"]
            value, target = _value(verdict["value"], share), _value(verdict["target"], share)
            if verdict["margin"] is None:
                lines.append(f"- after {stage}, **{name}** was not measured (target {target})")
                continue
            points = f"{abs(verdict['margin']) * 100:.1f} points" if share else f"{abs(verdict['margin']):.4g}"
            word = "met" if verdict["met"] else "**missed**"
            lines.append(f"- after {stage}, {name} {value}: target {target} {word} by {points}")
    return "\n".join(lines)


def _training(report: dict[str, Any]) -> str:
    counted = list(dict.fromkeys(name for training in report["training"].values() for name in training.get("counts", {})))
    rows = []
    for stage, training in report["training"].items():
        tokens = _count(training["tokens"]) if training["tokens"] else "n/a"
        counts = [_count(training.get("counts", {}).get(name) or 0) for name in counted]
        losses = [_value(training["first_loss"]), _value(training["last_loss"])]
        rows.append([stage, f"{training['steps']:,}", tokens, *losses, str(training["skipped_steps"]), *counts])
    head = ["stage", "steps", "tokens", "first loss", "last loss (smoothed)", "skipped steps"]
    return markdown_table(head + [name.replace("_", " ") for name in counted], rows) if rows else "No step yet."


def _remarks(lines: list[dict[str, Any]]) -> str:
    """What was said of the data: formats, mixtures, and what was left out."""
    return "\n".join(f"- {line['stage']}: {line['remark']}" for line in lines if "remark" in line)


def _times(report: dict[str, Any]) -> str:
    usd = report["usd"]
    rows = []
    for stage, seconds in report["seconds"].items():
        training = report["training"].get(stage, {})
        rate, mfu, peak = (training.get(field) for field in ("tokens_per_second", "mfu", "peak_memory_bytes"))
        row = [stage, duration(seconds), f"${usd.get(stage, 0):.2f}" if usd else "", f"{rate:,.0f}" if rate else ""]
        rows.append([*row, f"{mfu:.1%}" if mfu else "n/a" if training else "", f"{peak / 2**30:.2f}" if peak else ""])
    cost = f"**${sum(usd.values()):.2f}**" if usd else ""
    rows.append(["**all**", f"**{duration(sum(report['seconds'].values()))}**", cost, "", "", ""])
    return markdown_table(["stage", "time", "cost", "tokens/s", "MFU", "peak memory [GiB]"], rows)


def _model(plan: dict[str, Any]) -> str:
    parameters, shape = plan.get("parameters") or {}, plan.get("model") or {}
    whole = sum(parameters.values())
    rows = [[group, f"{count:,}", f"{count / whole:.1%}"] for group, count in parameters.items()]
    fields = ("architecture", "depth", "width", "heads", "kv_heads", "head_dim", "context", "vocab_size", "window_pattern")
    described = ", ".join(f"{field.replace('_', ' ')} {shape[field]}" for field in fields if field in shape)
    text = described[:1].upper() + described[1:] + "." if described else ""
    table = markdown_table(["group", "parameters", "share"], [*rows, ["**all**", f"**{whole:,}**", ""]])
    return _join(text, table if rows else "")


def _samples(lines: list[dict[str, Any]]) -> str:
    """The newest samples of each stage, the tasks in turn, fenced so that no text of the model becomes markup."""
    newest = {line["stage"]: line["samples"] for line in lines if line.get("samples")}
    texts = []
    for stage in ordered(newest):
        by_task: dict[str, list[dict[str, Any]]] = {}
        for sample in newest[stage]:
            by_task.setdefault(sample.get("task", ""), []).append(sample)
        longest = max(map(len, by_task.values()))
        turns = [sample for turn in range(longest) for group in by_task.values() for sample in group[turn : turn + 1]]
        texts.append(f"### After {stage}")
        texts += [_sample(sample) for sample in turns[:_SAMPLES_PER_STAGE]]
    return _join(*texts)


def _sample(sample: dict[str, Any]) -> str:
    shown = [("prompt", "prompt"), ("question", "prompt"), ("reply", "reply"), ("answer", "wanted")]
    text = "\n".join(f"{label}: {_cut(sample[field])}" for field, label in shown if sample.get(field) is not None)
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    verdict = ("(right)" if sample["right"] else "(wrong)") if "right" in sample else ""
    title = " ".join(filter(None, [sample.get("task"), verdict]))
    return _join(f"*{title}*" if title else "", f"{ticks}text\n{text}\n{ticks}")


def _environment(environment: dict[str, Any]) -> str:
    lines = []
    for name, value in environment.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if text not in (None, ""):
            lines.append(f"- {name.replace('_gib', ' [GiB]').replace('_', ' ')}: {text}")
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column on the left and the others on the right; columns without an entry are left out."""
    shown = [column for column in range(len(head)) if any(row[column] for row in rows)]
    lines = [[head[column] for column in shown], ["---" if column == 0 else "---:" for column in shown]]
    lines += [[row[column].replace("|", "\\|") for column in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _value(value: float | None, share: bool = False) -> str:
    return "" if value is None else f"{value:.1%}" if share else f"{value:.4f}"


def _count(number: float) -> str:
    unit, name = unit_of(number)
    return f"{number / unit:.3g}{name}"


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."
