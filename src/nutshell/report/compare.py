"""Two or more runs on one page: curves over each other, scores and whether they differ by more than noise, settings, items."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nutshell.files import write_text
from nutshell.metrics import duration, read_metrics
from nutshell.report.document import Block, Figure, Heading, Items, Sample, Table, Text, html, markdown
from nutshell.report.facts import read_json, steps_by_stage, summarise
from nutshell.report.page import count, cut, flat, ordered, score
from nutshell.report.paired import Difference, Graded, compare_scores, read_items
from nutshell.report.plots import curve, evaluated, loss_label, tokens_seen
from nutshell.report.svg import COLOURS, Plot, Series, draw

SHOWN_OF_EACH = 2  # items of a task that only one run gets right
SIGNIFICANT = 0.05


@dataclass
class RunFacts:
    """What the page shows of one run."""

    name: str
    folder: Path
    report: dict[str, Any]
    steps: dict[str, list[dict[str, Any]]]
    lines: list[dict[str, Any]]
    items: dict[str, dict[str, Graded]]
    """{stage or folder of an evaluation: {task: items}}"""
    notes: list[str]


def compare(folders: list[Path], out: Path, usd_per_hour: float | None = None) -> dict[str, Any]:
    """Write `out` (HTML), the same as Markdown beside it, and its plots in a folder of its name. Returns the same as a dict.

    Raises ValueError for one folder given twice, one that is no run, or a place that cannot be written; nothing is written then.
    """
    if out.suffix != ".html" or out.is_dir():
        raise ValueError(f"--out is {out}. Accepted: a file that ends in .html; the Markdown is written beside it.")
    if len(folders) > COLOURS:
        raise ValueError(f"{len(folders)} runs are given. Accepted: up to {COLOURS}, which colours can tell apart.")
    resolved = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1), None):
        raise ValueError(f"{twice} is given twice. Accepted: different runs, or one run for its report.")
    names = [path.name for path in resolved]
    runs = [
        _read(folder, name if names.count(name) == 1 else str(folder), usd_per_hour)
        for folder, name in zip(folders, names, strict=True)
    ]
    scores, differing = _scores(runs), settings(runs)
    title = "Comparison of " + ", ".join(f"`{run.name}`" for run in runs)
    figures: list[Block] = []
    for name, plot in plots(runs).items():
        file = out.parent / out.stem / f"{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, draw(plot, alone=True))
        figures.append(Figure(draw(plot), f"{plot.title} over {plot.x_label}.", f"{out.stem}/{file.name}"))
    sections: dict[str, list[Block]] = {
        "Scores": _score_tables(runs, scores),
        "Items": _items(runs),
        "Curves": figures,
        "Time and speed": [_times(runs)],
        "Settings": _settings(runs, differing),
    }
    blocks: list[Block] = [Heading(title, 1), *_notes(runs)]
    for heading, section in sections.items():
        blocks += [Heading(heading), *section] if section else []
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html(title.replace("`", ""), blocks))
    write_text(out.with_suffix(".md"), markdown(blocks))
    listed = [
        {"at": at, "metric": name, "values": values, "differences": [d and vars(d) for d in differences]}
        for at, name, values, differences in scores
    ]
    return {"page": str(out), "runs": [str(run.folder) for run in runs], "settings": differing, "scores": listed}


def _read(folder: Path, name: str, usd_per_hour: float | None) -> RunFacts:
    if not (folder / "plan.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} is no run: it has no plan.json and no metrics.jsonl. Give a run folder, such as runs/demo.")
    lines, plan, notes = read_metrics(folder), read_json(folder / "plan.json"), []
    notes += [f"{name} has no plan.json: its settings are not known"] if not plan else []
    notes += [f"{name} has no line in metrics.jsonl yet"] if not lines else []
    price = usd_per_hour or (plan.get("recipe") or {}).get("usd_per_hour") or None
    items = {}
    for file in sorted(folder.glob("*/items.jsonl")):
        items[file.parent.name], bad = read_items(file)
        notes += [f"{name}: {bad} lines of {file.parent.name}/items.jsonl cannot be read and are left out"] if bad else []
    if not items:
        notes.append(f"{name} has no items.jsonl: its scores are compared by their intervals, not item by item")
    return RunFacts(name, folder, summarise(lines, plan, {}, price), steps_by_stage(lines), lines, items, notes)


def _notes(runs: list[RunFacts]) -> list[Block]:
    notes = [note for run in runs for note in run.notes]
    made = [read_json(run.folder / "tokenizer" / "made.json") for run in runs]  # with the hash of the text's shards
    if len({each.get("text") for each in made}) > 1:
        notes.append(
            "The runs were not trained on the same text, and each holds back a part of its own: bits per byte and losses of "
            "pretraining compare texts as much as models. `nutshell eval RUN --text FILES` scores each on one text."
        )
    return [Items(notes)] if notes else []


def plots(runs: list[RunFacts]) -> dict[str, Plot]:
    """Loss of each stage, bits per byte and reward, over steps, tokens and time.

    Where all runs see as many tokens a step, the plot over tokens would be the one over steps, and is left out.
    """
    found: dict[str, Plot] = {}
    for stage in ordered(dict.fromkeys(stage for run in runs for stage in run.steps)):
        fields = [("reward", "mean reward")] if stage == "rl" else [("loss", loss_label(stage))]
        fields += [("val_bpb", "bits per byte")] if stage == "pretrain" else []
        for field, label in fields:
            same = len({record.get("tokens") for run in runs for record in run.steps.get(stage, [])}) == 1
            for axis in ("steps", "time [s]") if same else ("steps", "tokens", "time [s]"):
                series = [line for colour, run in enumerate(runs) for line in _line(run, stage, field, axis, colour)]
                if any(value is not None for line in series for value in line.y):
                    title = f"{stage} {label.split(' [')[0]}"
                    found[f"{title} over {axis.split()[0]}".replace(" ", "-")] = Plot(title.capitalize(), axis, label, series)
    return found


def _line(run: RunFacts, stage: str, field: str, axis: str, colour: int) -> list[Series]:
    records = run.steps.get(stage, [])
    tokens, known = tokens_seen(records)
    if not records or (axis == "tokens" and known != "tokens"):
        return []
    x = {"tokens": tokens, "steps": [r["step"] for r in records], "time [s]": [r.get("seconds") or 0.0 for r in records]}[axis]
    if field != "val_bpb":
        return curve(run.name, x, [record.get(field) for record in records], colour)
    scored = evaluated(run.name, run.lines, stage, field, records, x, colour)
    return [scored] if scored.x else []


Scores = list[tuple[str, str, list[float | None], list[Difference | None]]]


def _scores(runs: list[RunFacts]) -> Scores:
    """(stage, metric, value of each run, difference of each other run to the first)."""
    found: Scores = []
    stages = ordered(dict.fromkeys(at for run in runs for at in (*run.report["stages"], *run.items)))
    for at in stages:
        names = dict.fromkeys(n for run in runs for n in (*run.report["stages"].get(at, {}), *run.items.get(at, {})))
        for name in names:
            values, graded = [_value(run, at, name) for run in runs], [run.items.get(at, {}).get(name) for run in runs]
            intervals = [run.report["intervals"].get(at, {}).get(name) for run in runs]
            first = (values[0], intervals[0], graded[0])
            others = zip(values[1:], intervals[1:], graded[1:], strict=True)
            found.append((at, name, values, [compare_scores(first, other) for other in others]))
    return found


def _value(run: RunFacts, at: str, name: str) -> float | None:
    """What the run logged, or else the mean of its items."""
    if (value := run.report["stages"].get(at, {}).get(name)) is not None:
        return float(value)
    items = run.items.get(at, {}).get(name)
    return sum(grade for grade, _ in items.values()) / len(items) if items else None


def _score_tables(runs: list[RunFacts], scores: Scores) -> list[Block]:
    """All scores; what CORE is made of in a table of its own."""
    if not scores:
        return [Text("No run has been scored yet.")]
    logged = {at: {name for run in runs for name in run.report["stages"].get(at, {})} for at, *_ in scores}
    parts = [entry for entry in scores if "core" in logged[entry[0]] and entry[1] not in logged[entry[0]]]
    note = (
        f"**Bold** differences are more than noise: by chance, one so large comes in less than {SIGNIFICANT:.0%} of cases (p); "
        "among twenty scores one may be bold by chance. Where both runs answered the same items, these are compared in pairs "
        "(exact sign test over the items that differ), else by their 95% intervals. A number without either, such as bits per "
        "byte of one run, has no p: repeat it with other seeds (`nutshell ablate`)."
    )
    blocks: list[Block] = [_table(runs, [entry for entry in scores if entry not in parts]), Text(note)]
    if parts:  # 22 rows a stage: the last one tells enough
        last = [entry for entry in parts if entry[0] == parts[-1][0]]
        blocks += [Heading(f"CORE after {parts[-1][0]}, task by task", 3), _table(runs, last)]
    return blocks


def _table(runs: list[RunFacts], scores: Scores) -> Table:
    rows = []
    for at, name, values, differences in scores:
        share = any(name in run.report["baselines"] or name in run.items.get(at, {}) for run in runs)
        intervals = [run.report["intervals"].get(at, {}).get(name) for run in runs]
        cells = [score(value, interval, share) for value, interval in zip(values, intervals, strict=True)]
        rows.append([f"{name} after {at}", *cells, *(_said(difference, share) for difference in differences)])
    head = ["score", *(run.name for run in runs), *(f"{run.name} less {runs[0].name}" for run in runs[1:])]
    return Table(head, rows)


def _said(difference: Difference | None, share: bool) -> str:
    if difference is None:
        return ""
    text = f"{100 * difference.value:+.1f} points" if share else f"{difference.value:+.4f}"
    if difference.p is None:
        return text
    p = f"p {difference.p:.2g}" if difference.p >= 0.001 else "p < 0.001"
    told = f"{p}, {difference.pairs} pairs" if difference.pairs else p
    return f"**{text}** ({told})" if difference.p < SIGNIFICANT else f"{text} ({told}: noise)"


def _items(runs: list[RunFacts]) -> list[Block]:
    """Items that the first run gets right and another does not, and the other way round: counted, and a few shown."""
    rows, samples = [], {}
    first = runs[0]
    for other in runs[1:]:
        for at in ordered(at for at in first.items if at in other.items):
            for task, a in first.items[at].items():
                b = other.items[at].get(task, {})
                pairs = [(key, a[key], b[key]) for key in a if key in b]
                if not pairs:
                    continue
                better = {
                    first.name: [pair for pair in pairs if pair[1][0] > pair[2][0]],
                    other.name: [pair for pair in pairs if pair[1][0] < pair[2][0]],
                }
                alone = [len(found) for found in better.values()]
                counts = (*alone, len(pairs) - sum(alone), len(a.keys() | b.keys()) - len(pairs))
                rows.append([f"{task} after {at}", f"{first.name} and {other.name}", *map(str, counts)])
                samples[task, other.name] = [
                    Sample(
                        f"{task} after {at}, item {key[0]}: only {name} is right",
                        f"{first.name}: {_reply(x)}\n{other.name}: {_reply(y)}",
                    )
                    for name, found in better.items()
                    for key, (_, x), (_, y) in found[:SHOWN_OF_EACH]
                ]
    head = ["items", "runs", "only the first is right", "only the second", "both or neither", "asked of one only"]
    return [Table(head, rows), *(sample for some in samples.values() for sample in some)] if rows else []


def _reply(picked: Any) -> str:
    """The choice by its number from 0, or the first written reply."""
    picked = picked[0] if isinstance(picked, list) and picked else picked
    return f"choice {picked}" if isinstance(picked, int) else cut("nothing picked" if picked is None else picked)


def _times(runs: list[RunFacts]) -> Block:
    rows = []
    for stage in ordered(dict.fromkeys(stage for run in runs for stage in run.report["seconds"])):
        cells = []
        for run in runs:
            seconds, training = run.report["seconds"].get(stage), run.report["training"].get(stage, {})
            rate = training.get("tokens_per_second")
            time = [] if seconds is None else [duration(seconds)]
            cells.append(", ".join(time + ([f"{count(rate)} tokens/s"] if rate else [])))
        rows.append([stage, *cells])
    sums = [(sum(run.report["seconds"].values()), sum(run.report["usd"].values())) for run in runs]
    rows.append(["**all**", *(duration(seconds) + (f", ${usd:.2f}" if usd else "") for seconds, usd in sums)])
    return Table(["stage", *(run.name for run in runs)], rows)


def settings(runs: list[RunFacts]) -> dict[str, list[Any]]:
    """Settings of the recipe, the model and the machine that are not the same in all runs; None where a run has no such one."""
    known = []
    for run in runs:
        plan = run.report["plan"]
        machine = {name: value for name, value in (plan.get("hardware") or {}).items() if name != "timings"}
        known.append(flat((plan.get("recipe") or {}) | {"model": plan.get("model") or {}, "hardware": machine}))
    names = dict.fromkeys(name for each in known for name in each if name != "out")
    values = {name: [each.get(name) for each in known] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _settings(runs: list[RunFacts], differing: dict[str, list[Any]]) -> list[Block]:
    if not differing:
        return [Text("All settings are the same.")]
    rows = [
        [f"`{name}`", *("" if value is None else json.dumps(value, ensure_ascii=False) for value in row)]
        for name, row in differing.items()
    ]
    return [Table(["setting", *(run.name for run in runs)], rows)]
