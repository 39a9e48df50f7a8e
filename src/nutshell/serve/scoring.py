"""Log-probabilities of a prompt's own tokens, for `echo` with `logprobs`: what evaluation harnesses compare choices by.

They are those of `eval/score.py`, which sums them over a continuation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nutshell.infer.sampling import log_probabilities

LOGITS_AT_ONCE = 1 << 22


class Scored(NamedTuple):
    """A token with its log-probability and the likeliest tokens of its place, in nats; None where nothing predicts it."""

    token_id: int
    logprob: float | None
    top: Sequence[tuple[int, float]] = ()


@torch.inference_mode()
def score_prompt(engine: Any, ids: Sequence[int], count: int) -> tuple[list[Scored], Scored]:
    """Each token of `ids` with `count` likeliest ones of its place, and the likeliest token that would follow.

    Hidden states are (1, T, C); logits are made for a few places at a time. ValueError where ids are longer than the context.
    """
    model = engine.model_in_torch()
    tensor = torch.tensor([list(ids)], device=next(model.parameters()).device)
    hidden = model.hidden_states(tensor, model.rows_context(tensor))[0]
    scored = [Scored(ids[0], None)]
    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for start in range(0, len(ids), size):
        logits = model.head(hidden[start : start + size])  # (size, V)
        targets = tensor[0, start + 1 : start + 1 + len(logits)]
        last = start + len(logits) == len(ids)
        chosen = torch.cat([targets, logits[-1:].argmax(dim=-1)]) if last else targets
        ids_here: list[int] = chosen.tolist()
        own, tops = log_probabilities(logits.cpu().numpy(), ids_here, max(1, count))
        scored += [Scored(*entry) for entry in zip(ids_here, own, (top[:count] for top in tops), strict=True)]
    following = scored.pop()
    return scored, following
