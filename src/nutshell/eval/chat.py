"""Accuracy of a chat model on a task: multiple choice by log-probability, or free replies that the task grades."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling

if TYPE_CHECKING:
    from nutshell.tasks import Item, Task

Progress = Callable[[int, int], None]

TOKENS_PER_BATCH = 4096
ROWS = 64
EXAMPLES_OF_EACH = 3


def evaluate(
    task: Task,
    model: Any,
    tok: Any,
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
    max_tokens: int = 128,
    compute: str = "auto",
) -> dict[str, Any]:
    """Accuracy on all items of a task, with its uncertainty and a few examples.

    Returns accuracy, baseline (random guessing), count, standard_error (binomial), interval (Wilson, 95%) and examples:
    up to three wrong and three right ones as {question, reply, answer, right}. `progress(done, total)` counts items.

    A choice item is right where its answer is the option with the highest mean log-probability per token as the
    assistant's reply. The end of the reply is left out of the mean: a base model has never seen it, and would otherwise
    be compared by how little it dislikes that token. A generated reply is greedy and has at most `max_tokens` tokens; `compute`
    is one of the engine's `ENGINES`.
    """
    if not task.items:
        raise ValueError(f"the task {task.name} has no items; accepted: at least one.")
    if task.kind == "choice":
        replies = [item.options[best] for item, best in zip(task.items, choose(task.items, model, tok, progress), strict=True)]
        right = [reply == item.answer for item, reply in zip(task.items, replies, strict=True)]
    elif task.kind == "generate":
        replies = answer(task.items, model, tok, engine, progress, max_tokens, compute)
        right = [bool(task.grade(item, reply)) for item, reply in zip(task.items, replies, strict=True)]
    else:
        raise ValueError(f"the task {task.name} is of kind {task.kind!r}; accepted: 'choice' or 'generate'.")
    count, accuracy = len(right), sum(right) / len(right)
    return {
        "accuracy": accuracy,
        "baseline": task.baseline,
        "count": count,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "interval": wilson_interval(sum(right), count),
        "examples": _examples(task.items, replies, right),
    }


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true rate lies with 95% confidence; sensible at 0% and 100% too (Wilson 1927)."""
    rate, spread = right / count, z * z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _examples(items: list[Item], replies: list[str], right: list[bool]) -> list[dict[str, Any]]:
    examples = []
    for wanted in (False, True):
        places = [place for place, fine in enumerate(right) if fine is wanted][:EXAMPLES_OF_EACH]
        for place in places:
            question = str(items[place].messages[-1]["content"])
            entry = {"question": question, "reply": replies[place], "answer": items[place].answer, "right": wanted}
            examples.append(entry)
    return examples


def answer(
    items: list[Item],
    model: Any,
    tok: Any,
    engine: Engine | None,
    progress: Progress | None,
    max_tokens: int,
    compute: str = "auto",
) -> list[str]:
    """Greedy replies, with the calculator."""
    context = engine.context if engine else model.config.context
    prompts = [fit_conversation(item.messages, tok, context, max_tokens).ids for item in items]
    if engine is None:
        context = min(context, max(map(len, prompts)) + max_tokens)
        engine = Engine(model, tok, max_rows=min(ROWS, len(items)), context=context, engine=compute)
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    return [replies[0].text for replies in engine.sample(prompts, 1, sampling, progress=progress)]


@torch.inference_mode()
def choose(items: list[Item], model: Any, tok: Any, progress: Progress | None = None) -> list[int]:
    """Index of the likeliest option of each item."""
    device = next(model.parameters()).device
    scores: list[list[float]] = [[0.0] * len(item.options) for item in items]
    rows = []  # (ids, first scored position, item, option)
    longest = model.config.context + 1  # the last token is only a target
    for place, item in enumerate(items):
        options = [tok.encode(option) for option in item.options]
        prompt = fit_conversation(item.messages, tok, model.config.context, max(map(len, options))).ids
        for number, option in enumerate(options):
            ids = [*prompt, *option][-longest:]
            rows.append((ids, max(1, len(ids) - len(option)), place, number))
    rows.sort(key=lambda row: len(row[0]))
    done = 0
    for batch in _batches(rows):
        width = len(batch[-1][0]) - 1
        inputs = torch.tensor([row[0][:-1] + [0] * (width + 1 - len(row[0])) for row in batch], device=device)
        hidden = model.hidden_states(inputs, model.rows_context(inputs))  # (B, T, C)
        places = [(b, t - 1) for b, (tokens, first, _, _) in enumerate(batch) for t in range(first, len(tokens))]
        index = torch.tensor(places, device=device)
        targets = torch.tensor([token for tokens, first, _, _ in batch for token in tokens[first:]], device=device)
        logits: Tensor = model.head(hidden[index[:, 0], index[:, 1]])  # (N, V): only where an option is scored
        chosen = logits.log_softmax(dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
        means = torch.zeros(len(batch), dtype=chosen.dtype, device=device).index_add_(0, index[:, 0], chosen)
        for (tokens, first, place, number), total in zip(batch, means.tolist(), strict=True):
            scores[place][number] = total / (len(tokens) - first)
        done += len(batch)
        if progress:
            progress(done * len(items) // len(rows), len(items))
    return [max(range(len(of_item)), key=of_item.__getitem__) for of_item in scores]


def _batches(rows: list[tuple[list[int], int, int, int]]) -> Iterator[list[tuple[list[int], int, int, int]]]:
    """Neighbours of the sorted rows, TOKENS_PER_BATCH of them with padding."""
    batch: list[tuple[list[int], int, int, int]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[0]) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    yield batch
