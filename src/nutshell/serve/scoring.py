"""Log-probabilities of a prompt's own tokens, for `echo` with `logprobs`: what evaluation harnesses compare choices by.

They are those of `eval/score.py`, which sums them over a continuation.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from nutshell.infer.sampling import log_probabilities


class Scored(NamedTuple):
    """A token with its log-probability and the likeliest tokens of its place, in nats; None where nothing predicts it."""

    token_id: int
    logprob: float | None
    top: Sequence[tuple[int, float]] = ()


def score_prompt(engine: Any, ids: Sequence[int], count: int) -> tuple[list[Scored], Scored]:
    """Each token of `ids` with `count` likeliest ones of its place, and the likeliest token that would follow."""
    scored = [Scored(ids[0], None)]
    with closing(engine.prompt_logits(ids)) as parts:
        for logits in parts:
            following = list(ids[len(scored) : len(scored) + len(logits)])
            if len(following) < len(logits):
                following.append(int(logits[-1].argmax()))
            own, tops = log_probabilities(logits, following, max(1, count))
            scored += [Scored(*entry) for entry in zip(following, own, (top[:count] for top in tops), strict=True)]
    return scored[:-1], scored[-1]
