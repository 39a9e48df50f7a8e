"""Several tasks on one model: their results, the metrics made of them, and the files that are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nutshell.eval.chat import evaluate
from nutshell.eval.core import evaluate_core
from nutshell.eval.journal import Journal
from nutshell.eval.records import Record
from nutshell.eval.score import Progress
from nutshell.files import write_text
from nutshell.tasks import GROUPS, Core, Task

CHATCORE = GROUPS["chatcore"]
"""The tasks of ChatCORE (nanochat's chat_eval.py): the mean of (accuracy - chance) / (1 - chance) over all five."""


def evaluate_task(
    task: Task | Core, model: Any, tok: Any, *, runtime: Any = None, progress: Progress | None = None,
    journal: Journal | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The result of one task; `options` are those of `evaluate` for chat tasks."""
    if isinstance(task, Core):
        return evaluate_core(task, model, tok, runtime=runtime, progress=progress, journal=journal)
    return evaluate(task, model, tok, runtime=runtime, progress=progress, journal=journal, **options)


def evaluate_tasks(
    tasks: Iterable[Task | Core],
    model: Any,
    tok: Any,
    *,
    runtime: Any = None,
    out: Path | None = None,
    show: Callable[[str, dict[str, Any]], None] | None = None,
    progress: Callable[[str], Progress] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """{name: result} of all tasks, and `chatcore` where all of its tasks are there.

    `out`/items.jsonl gets one line an item after each task. `show(name, result)` is called as each is done. What was scored of a
    call that did not come to its end is not scored again: `out`/scores.jsonl has it until then.
    """
    journal = Journal(out / "scores.jsonl", model) if out is not None else None
    results: dict[str, dict[str, Any]] = {}
    records: list[Record] = []
    for task in tasks:
        note = progress(task.name) if progress else None
        result = evaluate_task(task, model, tok, runtime=runtime, progress=note, journal=journal, **options)
        records += result["records"]
        if out is not None and (runtime is None or runtime.is_main):
            write_text(out / "items.jsonl", "".join(record.line() + "\n" for record in records))
        results[task.name] = result
        if show:
            show(task.name, result)
    if journal is not None and (runtime is None or runtime.is_main):
        journal.path.unlink(missing_ok=True)
    if all(name in results for name in CHATCORE):
        results["chatcore"] = chatcore(results)
        if show:
            show("chatcore", results["chatcore"])
    return results


def chatcore(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean of the centred accuracies; nanochat takes a quarter as chance in multiple choice."""
    total, variance = 0.0, 0.0
    for name in CHATCORE:
        chance = 0.0 if name in ("gsm8k", "humaneval") else 0.25
        total += (results[name]["accuracy"] - chance) / (1 - chance)
        variance += (results[name]["standard_error"] / (1 - chance)) ** 2
    value, error = total / len(CHATCORE), variance**0.5 / len(CHATCORE)
    return {
        "accuracy": value, "baseline": 0.0, "count": sum(results[name]["count"] for name in CHATCORE), "standard_error": error,
        "interval": (value - 1.96 * error, value + 1.96 * error), "examples": [], "notes": [], "records": [],
    }  # fmt: skip
