"""What midtraining and fine-tuning learn from: the run's own copies of each part, mixed by their shares, and what is held out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from nutshell.data import primer
from nutshell.data.conversations import Example, Found, find_conversations, refuse_bad
from nutshell.files import write_text
from nutshell.metrics import MetricsLog
from nutshell.plan.mixture import GENERATED, SHORT_CONVERSATION_TOKENS, Size, parts_of, plan_parts
from nutshell.plan.recipe import Recipe, parse_identity
from nutshell.plan.stages import MixturePart
from nutshell.run.folder import Run, copy_of
from nutshell.tasks.teach import conversations_of
from nutshell.text_files import json_rows
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages, render_example, split_example

CONVERSATION_STAGES = {"midtrain": 1, "sft": 2}
"""Stages of conversations, and what is added to the seed for each."""
SAMPLE = 200  # conversations from which the tokens of a file are estimated


def identity_of(recipe: Recipe) -> primer.Identity:
    return primer.Identity(**parse_identity(recipe.identity))


def given_parts(recipe: Recipe) -> dict[str, MixturePart]:
    """The parts of all stages of conversations that are not generated, by their key."""
    parts = [part for stage in CONVERSATION_STAGES for part in parts_of(recipe, stage)]
    return {part.key: part for part in parts if part.key not in GENERATED}


def read_part(recipe: Recipe, part: MixturePart) -> Found:
    """All rows of a part. ValueError where one is bad, unless the recipe skips them, and for a task that cannot teach."""
    if part.task:
        name, examples = conversations_of(part.task, recipe.eval_data or None)
        return Found(examples=examples, formats=Counter({name: len(examples)}))
    found = find_conversations(part.data, check=parse_messages)
    refuse_bad(found, recipe.skip_bad)
    if found.unlearned == len(found.examples):
        raise ValueError(
            f"{part.data}: none of its {found.unlearned} conversations has an answer to learn. Accepted: messages of the "
            "assistant, and not all with weight 0 or train false."
        )
    return found


def write_copies(recipe: Recipe, log: MetricsLog) -> None:
    """The run's own copy of each part, and a line about it in log and report."""
    for path in copies(recipe):
        path.unlink(missing_ok=True)  # of a first attempt
    for key, part in given_parts(recipe).items():
        found, path = read_part(recipe, part), copy_of(recipe, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(example) + "\n" for example in found.examples))
        log.remark("data", f"{part.name}: {found.summary()}")


def copies(recipe: Recipe) -> list[Path]:
    return [copy_of(recipe, recipe.sft), *(Path(recipe.out) / "mixture").glob("*.jsonl")]


def read_copy(recipe: Recipe, part: MixturePart) -> list[Example]:
    """A part as the run copied it, or from its source in a run that has no copies."""
    path = copy_of(recipe, part.key)
    examples = [row for _, row in json_rows(path)] if path.exists() else read_part(recipe, part).examples
    return examples[: part.rows or None]


def sizes(recipe: Recipe, tok: Tokenizer) -> dict[str, Size]:
    """Rows of each given part, and its tokens, estimated from rows spread over it."""
    found = {}
    for key, part in given_parts(recipe).items():
        examples = read_copy(recipe, replace(part, rows=0))
        sample = examples[:: max(1, len(examples) // SAMPLE)]
        mean = sum(len(render_example(example, tok)[0]) for example in sample) / max(1, len(sample))
        found[key] = Size(len(examples), mean * len(examples))
    return found


def examples_for(run: Run, stage: str) -> tuple[list[Example], list[Example]]:
    """What a stage learns from, as one list in which parts repeat by their shares, and what is held out of the user's own data.

    The list is as long as the stage's tokens, or shorter where every part is in it at least once. The loader shuffles it. It
    depends only on the recipe, the run's copies and the length of the stage, so a run that goes on has the same one.
    """
    recipe, plan = run.plan.recipe, run.plan.stages[stage]
    known, tokens = sizes(recipe, run.tok), plan.steps * plan.tokens_per_step
    planned = plan_parts(recipe, stage, known, tokens)
    whole = min(tokens, max(part.tokens / part.share for part in planned))  # tokens of the list
    learned: list[Example] = []
    held_out: list[Example] = []
    for part, size in zip(parts_of(recipe, stage), planned, strict=True):
        if part.key in GENERATED:
            wanted = min(size.rows, int(tokens * size.share) // SHORT_CONVERSATION_TOKENS + 1)  # short as some are
            seed = recipe.seed + CONVERSATION_STAGES[stage]
            learned += primer.conversations(seed, wanted, GENERATED[part.key], identity=identity_of(recipe))
            continue
        rows = read_copy(recipe, part)
        if part.data:
            rows, val = hold_out(rows, recipe.held_out)
            held_out += val
        taken = _times(rows, whole * size.share / size.tokens, recipe.seed)
        learned += [piece for row in taken for piece in split_example(row, run.tok, run.plan.model.context + 1)]
    return learned, held_out


def hold_out(rows: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(rows to learn, rows to validate): by a hash of each, so that equal rows stay together and a file that grows keeps them
    apart. Where that would leave nothing to learn, nothing is held out."""
    learned: list[Example] = []
    held: list[Example] = []
    for row in rows:
        number = int.from_bytes(hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()[:4], "big")
        (held if number < share * 2**32 else learned).append(row)
    return (learned, held) if learned else (rows, [])


def _times(rows: list[Example], times: float, seed: int) -> Iterator[Example]:
    """Each row `times` times; for the fraction, a random sample of the rows, drawn by the seed."""
    for _ in range(math.floor(times)):
        yield from rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[: round((times % 1) * len(rows))]
    yield from (rows[index] for index in chosen.tolist())
