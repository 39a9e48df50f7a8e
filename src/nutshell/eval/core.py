"""CORE scored: token boundaries and picks as nanochat's core_eval.py has them; `tasks/core.py` makes the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nutshell.eval.records import Record, prompt_hash
from nutshell.eval.score import Pair, Score, score_groups
from nutshell.tasks.core import Core, CoreTask

ITEMS_AT_ONCE = 512
"""Whose prompts are in memory together, and sorted by length."""


def evaluate_core(core: Core, model: Any, tok: Any, *, runtime: Any = None, **options: Any) -> dict[str, Any]:
    """The CORE metric as `accuracy`: the mean over tasks of (accuracy - chance) / (1 - chance).

    Also `tasks` ({label: accuracy, centered, count}), count, baseline, standard_error and interval of the metric, `records`.
    `options` are `score_groups`'s: progress, journal.
    """
    items = core.items
    hashes: list[str] = []

    def question(item: tuple[CoreTask, int]) -> list[Pair]:
        task, index = item
        prompts = task.prompts(index)
        hashes.append(prompt_hash(prompts))
        return pairs(task.type, prompts, tok, model.config.context)

    scored = list(score_groups(model, map(question, items), len(items), at_once=ITEMS_AT_ONCE, runtime=runtime, **options))
    records = [judge(task, index, prompt, scores) for (task, index), prompt, scores in zip(items, hashes, scored, strict=True)]
    tasks, variance = {}, 0.0
    for task in core.tasks:
        right = [record.right for record in records if record.task == task.label]
        accuracy, scale = sum(right) / len(right), 1 - task.baseline
        tasks[task.label] = {"accuracy": accuracy, "centered": (accuracy - task.baseline) / scale, "count": len(right)}
        variance += accuracy * (1 - accuracy) / len(right) / scale**2
    metric = sum(result["centered"] for result in tasks.values()) / len(tasks)
    error = math.sqrt(variance) / len(tasks)
    return {
        "accuracy": metric, "baseline": 0.0, "count": len(items), "standard_error": error,
        "interval": (metric - 1.96 * error, metric + 1.96 * error), "tasks": tasks, "examples": [], "notes": list(core.notes),
        "records": records,
    }  # fmt: skip


def pairs(kind: str, prompts: Sequence[str], tok: Any, longest: int) -> list[Pair]:
    """Prefix and scored rest of each text, in tokens behind <|bos|>.

    What all choices begin with is their prefix, what all beginnings end with is scored; of language modeling it is what follows
    the text without its end. A text of more than `longest` tokens loses its beginning.
    """
    sequences = [[tok.bos_id, *tok.encode(prompt)] for prompt in prompts]
    if kind == "schema":
        shared = shared_start([ids[::-1] for ids in sequences])
        starts = [len(ids) - shared for ids in sequences]
    elif kind == "multiple_choice":
        starts = [shared_start(sequences)] * len(sequences)
    else:  # where a token crosses the boundary, which nanochat refuses, all of it is scored
        starts, sequences = [shared_start(sequences)], sequences[1:]
    found: list[Pair] = []
    for ids, start in zip(sequences, starts, strict=True):
        start = max(1, start - max(0, len(ids) - longest))
        ids = ids[-longest:]
        found.append((ids[:start], ids[start:]))
    return found


def shared_start(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if any(token != tokens[0] for token in tokens):
            return place
    return min(map(len, sequences))


def judge(task: CoreTask, index: int, prompt: str, scores: list[Score]) -> Record:
    """Of choices the one with the least loss per token is picked; a language model must say every token of the end."""
    if task.type == "language_modeling":
        (one,) = scores
        return Record(task.label, index, prompt, [one.logprob], None, one.greedy)
    losses = [-one.mean for one in scores]
    picked = losses.index(min(losses))  # the first of equal ones; also where a choice has no token of its own, so is NaN
    return Record(task.label, index, prompt, [one.mean for one in scores], picked, picked == task.rows[index]["gold"])
