"""What a stage learns from: the parts of its data, their shares of its tokens, and how often each is read. Pure.

Shares come from weights, or from the epochs that the recipe names for each part. A part is then read as often as its share of
the stage's tokens is larger than itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nutshell.plan.recipe import ON_ANSWERS, PRIMER, Recipe
from nutshell.plan.record import PartPlan
from nutshell.plan.stages import MixturePart

CONVERSATION_TOKENS, SHORT_CONVERSATION_TOKENS = 100, 60
"""Of the primer's conversations: their mean with a vocabulary of 2,048, and less than that."""
CHARACTERS_PER_TOKEN = 4.0
GENERATED: dict[str, tuple[str, ...] | None] = {
    PRIMER: None, "spelling": ("spelling", "letters"), "primer-facts": ("facts", "choices"), "primer-sums": ("sums",),
    "primer-letters": ("letters",), "primer-vowels": ("vowels",),
}  # fmt: skip
"""Parts that are written as they are needed, never from what the tests hold out, and the kinds of the primer's conversations
that they are made of (None: all)."""


class Size(NamedTuple):
    """Of what is read once."""

    rows: int  # conversations or documents
    tokens: float


def parts_of(recipe: Recipe, stage: str) -> tuple[MixturePart, ...]:
    """The mixture of a stage: the recipe's, or --data for pretraining and --sft with its share of the primer."""
    config = getattr(recipe.stages, stage)
    if config.mixture or stage in ON_ANSWERS:
        return config.mixture
    if stage == "pretrain":
        return (MixturePart(data=recipe.data),)
    share = 1.0 if recipe.sft == PRIMER else config.primer_share
    weights = {recipe.sft: 1 - share, PRIMER: share}
    return tuple(MixturePart(data=data, weight=weight) for data, weight in weights.items() if weight)


def is_validated(recipe: Recipe, stage: str) -> bool:
    """Whether a stage has data that is held out: text, or conversations that somebody else wrote."""
    own = any(part.data and part.key not in GENERATED for part in parts_of(recipe, stage))
    return stage == "pretrain" or (own and recipe.held_out > 0)


def size_of(recipe: Recipe, stage: str, part: MixturePart, sizes: Mapping[str, Size]) -> Size | None:
    """Rows and tokens of one reading; None where that is not known yet."""
    if stage == "pretrain" and part.key == PRIMER and PRIMER not in sizes:
        return Size(0, recipe.primer_characters / CHARACTERS_PER_TOKEN)
    if stage != "pretrain" and part.key in GENERATED:
        rows = part.rows or recipe.primer_conversations
        return Size(rows, rows * CONVERSATION_TOKENS)
    size = sizes.get(part.key)
    if size is None or not size.tokens:
        return None
    rows = min(part.rows or size.rows, size.rows)
    return Size(rows, size.tokens * rows / max(1, size.rows) if part.rows else size.tokens)


def plan_parts(recipe: Recipe, stage: str, sizes: Mapping[str, Size], tokens: float) -> tuple[PartPlan, ...]:
    """Share and epochs of each part of a stage of `tokens` tokens; empty where the size of a part is not known."""
    parts = parts_of(recipe, stage)
    known = [size for part in parts if (size := size_of(recipe, stage, part, sizes))]
    if len(known) < len(parts):
        return ()
    amounts = [part.epochs * size.tokens or part.weight or 1.0 for part, size in zip(parts, known, strict=True)]
    shares = [amount / sum(amounts) for amount in amounts]
    return tuple(
        PartPlan(name=part.name, share=share, rows=size.rows, tokens=size.tokens, epochs=tokens * share / size.tokens)
        for part, size, share in zip(parts, known, shares, strict=True)
    )


def token_limit(recipe: Recipe, stage: str, sizes: Mapping[str, Size]) -> float | None:
    """The most tokens of a stage whose steps are not named: the sum of its parts' epochs, or as many as read no part more than
    `epochs` times. None where nothing limits it (pretraining by weights), or sizes are not known."""
    parts = parts_of(recipe, stage)
    planned = plan_parts(recipe, stage, sizes, 1.0)
    if any(part.epochs for part in parts) and planned:
        return sum(part.epochs * size.tokens for part, size in zip(parts, planned, strict=True))
    if stage == "pretrain" or not planned:
        return None
    return getattr(recipe.stages, stage).epochs * min(part.tokens / part.share for part in planned)
