"""Accuracy of a chat model on a task: multiple choice by log-probability, or written replies that the task grades."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nutshell.eval.records import Record, prompt_hash
from nutshell.eval.score import Pair, Progress, score_groups
from nutshell.infer.conversation import FittedConversation, fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling
from nutshell.tasks.reward import NoGradeError, call_grade

if TYPE_CHECKING:
    from nutshell.eval.journal import Journal
    from nutshell.tasks import Item, Task

ROWS = 64
ITEMS_AT_ONCE = 1024
EXAMPLES_OF_EACH = 3


def evaluate(
    task: Task,
    model: Any,
    tok: Any,
    *,
    engine: Engine | None = None,
    runtime: Any = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    max_tokens: int = 0,
    samples: int = 1,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """Accuracy on all items of a task, with its uncertainty and a few examples.

    Returns accuracy, baseline (random guessing), count, standard_error, interval (95%), examples, notes, records and, with
    several samples, pass_at_k. Examples are up to three wrong and three right ones as {question, reply, answer, right}.
    `progress(done, total)` counts items. All ranks of `runtime` take part. What stands in the `journal` is not scored again.

    A choice item is right where its answer is the option with the highest mean log-probability per token as the
    assistant's reply. The end of the reply is left out of the mean: a base model has never seen it, and would otherwise
    be compared by how little it dislikes that token. A written reply has at most `max_tokens` tokens (0: as the task says) and
    is the likeliest one at a temperature of 0; accuracy is the mean grade, pass_at_k how often one of k samples is right.
    """
    if not task.items:
        raise ValueError(f"the task {task.name} has no items; accepted: at least one.")
    if task.kind == "choice":
        records, notes = choose(task, model, tok, runtime, progress, journal)
    else:
        room = max_tokens or task.max_tokens
        records, notes = write(task, model, tok, engine, runtime, progress, room, samples, temperature)
    grades = [float(record.right) for record in records]
    count, accuracy = len(grades), sum(grades) / len(grades)
    variance = sum((grade - accuracy) ** 2 for grade in grades) / count
    binary = all(grade in (0.0, 1.0) for grade in grades)
    half = 1.96 * math.sqrt(variance / count)
    result = {
        "accuracy": accuracy,
        "baseline": task.baseline,
        "count": count,
        "standard_error": math.sqrt(variance / count),
        "interval": wilson_interval(sum(grades), count) if binary else (max(0.0, accuracy - half), min(1.0, accuracy + half)),
        "examples": _examples(task.items, records),
        "notes": [*task.notes, *notes],
        "records": records,
    }
    if samples > 1 and task.kind == "generate":
        rights = [sum(grade >= 1 for grade in record.scores) for record in records]
        ks = sorted({1 << power for power in range(samples.bit_length()) if 1 << power <= samples} | {samples})
        result["pass_at_k"] = {str(k): sum(pass_at_k(samples, right, k) for right in rights) / count for k in ks}
    return result


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of k replies is right, without bias from `samples` of which `right` are (arXiv 2107.03374)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def wilson_interval(right: float, count: int) -> tuple[float, float]:
    """Where the true rate lies with 95% confidence; sensible at 0% and 100% too (Wilson 1927)."""
    z = 1.96
    rate, spread = right / count, z * z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _examples(items: list[Item], records: list[Record]) -> list[dict[str, Any]]:
    examples = []
    for wanted in (False, True):
        some = [pair for pair in zip(items, records, strict=True) if (pair[1].right >= 1) is wanted][:EXAMPLES_OF_EACH]
        for item, record in some:
            reply = item.options[record.picked] if item.options else record.picked[0]
            question = str(item.messages[-1]["content"])
            examples.append({"question": question, "reply": reply, "answer": item.answer, "right": wanted})
    return examples


def choose(
    task: Task, model: Any, tok: Any, runtime: Any = None, progress: Progress | None = None, journal: Journal | None = None
) -> tuple[list[Record], list[str]]:
    """Each item with its likeliest option, and what the reader should know."""
    prompts: list[FittedConversation] = []

    def pairs(item: Item) -> list[Pair]:
        options = [tok.encode(option) for option in item.options]
        prompts.append(fit(item, tok, model.config.context, max(map(len, options))))
        return [(prompts[-1].ids, option) for option in options]

    groups = score_groups(
        model, map(pairs, task.items), len(task.items), at_once=ITEMS_AT_ONCE, runtime=runtime, progress=progress, journal=journal
    )
    records = []
    for item, scores in zip(task.items, groups, strict=True):
        means = [option.mean for option in scores]
        picked = max(range(len(means)), key=means.__getitem__)
        right = item.options[picked] == item.answer
        records.append(Record(task.name, item.index, prompt_hash(item.messages), means, picked, right))
    return records, lost(prompts, model.config.context)


def write(
    task: Task, model: Any, tok: Any, engine: Engine | None, runtime: Any, progress: Progress | None, max_tokens: int,
    samples: int, temperature: float,
) -> tuple[list[Record], list[str]]:  # fmt: skip
    """Each item with the replies written to it and their grades; replies may call the calculator."""
    if engine is None and not hasattr(model, "for_inference"):
        raise ValueError(f"{task.name} needs replies, which only models of nutshell write; other models answer multiple choice.")
    rank, world = (runtime.rank, runtime.world_size) if runtime is not None else (0, 1)
    context = engine.context if engine else model.config.context
    items = task.items[rank::world]
    prompts = [fit(item, tok, context, max_tokens) for item in items]
    if engine is None and items:
        longest = min(context, max(len(prompt.ids) for prompt in prompts) + max_tokens)
        engine = Engine(model, tok, max_rows=min(ROWS, len(items) * samples), context=longest)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=0 if temperature else None)

    def note(done: int, total: int) -> None:
        if progress:
            progress(min(len(task.items), done // samples * world), len(task.items))

    replies = engine.sample([prompt.ids for prompt in prompts], samples, sampling, progress=note) if engine and items else []
    records = []
    for item, answers in zip(items, replies, strict=True):
        texts = [answer.text for answer in answers]
        grades = [graded(task, item, text) for text in texts]
        right = sum(grades) / len(grades)
        records.append(Record(task.name, item.index, prompt_hash(item.messages), grades, texts, right))
    notes = lost(prompts, context)
    if world > 1:
        shares = runtime.gather((records, notes))
        records = [shares[n % world][0][n // world] for n in range(len(task.items))]
        notes = [note for _, theirs in shares for note in theirs]
    return records, notes


def graded(task: Task, item: Item, text: str) -> float:
    """The task's grade of a reply. ValueError where its grader fails, or gives anything but a number from 0 to 1."""
    try:
        value = call_grade(task.grade, item, text)
    except NoGradeError as error:
        raise ValueError(f"the grader of {task.name} {error} on item {item.index}; accepted: a number from 0 to 1.") from error
    if not 0 <= value <= 1:
        raise ValueError(f"the grader of {task.name} gave {value:g} on item {item.index}; accepted: a number from 0 to 1.")
    return value


def fit(item: Item, tok: Any, context: int, room: int) -> FittedConversation:
    """The prompt of an item, such that `room` tokens of a reply fit."""
    if hasattr(tok, "chat_prompt"):  # another model's tokenizer (huggingface.py)
        ids = tok.chat_prompt(item.messages)
        return FittedConversation(ids[-max(1, context - room) :], 0, len(ids) > context - room)
    return fit_conversation(item.messages, tok, context, room)


def lost(prompts: list[FittedConversation], context: int) -> list[str]:
    """What did not fit, in a sentence each."""
    dropped = sum(prompt.dropped > 0 for prompt in prompts)
    cut = sum(prompt.truncated for prompt in prompts)
    reason = f"of {len(prompts)} items {{}}: more than the context of {context} tokens"
    texts = [(dropped, "lost their oldest examples"), (cut, "lost the beginning of the question")]
    return [f"{count} {reason.format(what)}" for count, what in texts if count]
