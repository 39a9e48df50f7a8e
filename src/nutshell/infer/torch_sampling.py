"""`sampling.draw` on an accelerator; what the native code is tested against.

Nothing here depends on a number that the device has, so that it can be part of a CUDA graph.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nutshell.infer.sampling import MIN_TEMPERATURE, Draw

GREEDY = Draw(temperature=0, top_k=0, top_p=1, min_p=0, uniform=0)
"""Stands for a row whose likeliest token is taken."""


def candidates_of(draws: Sequence[Draw | None], vocab_size: int) -> int | None:
    """How many of the likeliest tokens must be put in order to draw from them, one of few numbers. 0: all tokens, as they stand;
    None: nothing is drawn."""
    drawn = [draw for draw in draws if draw]
    if not any(draw.restricted for draw in drawn):
        return 0 if drawn else None
    most = max(draw.top_k or vocab_size for draw in drawn)
    return min(1 << (most - 1).bit_length(), vocab_size)


def draw_in_torch(logits: Tensor, draws: Tensor, candidates: int | None) -> Tensor:
    """Tokens (B,) of logits (B, V), drawn as the rows of draws (B, 5) say, each a `Draw`; -1 where a logit is NaN or infinite."""
    best = logits.argmax(dim=-1)
    finite = torch.isfinite(logits).all(dim=-1)
    if candidates is None:
        return torch.where(finite, best, -1)
    exact = draws.dtype  # 32k fp32 additions lose the rare tokens
    temperature, top_k, top_p, min_p, uniform = draws.unsqueeze(2).unbind(1)  # (B, 1) each
    logits, order = logits.float(), None
    if candidates:
        likeliest, order = logits.topk(candidates, dim=-1)  # most likely first
        if candidates == logits.size(-1):  # rows that leave nothing out stay as they stand, and so draw the same as by themselves
            restricted = (top_k > 0) | (top_p < 1) | (min_p > 0)
            order = torch.where(restricted, order, torch.arange(candidates, device=logits.device))
            likeliest = torch.where(restricted, likeliest, logits)
        logits = likeliest
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.clamp(min=MIN_TEMPERATURE).float()
    if order is not None:
        place = torch.arange(candidates, device=logits.device)
        scaled = scaled.masked_fill((place >= top_k) & (top_k > 0), -math.inf)
    probability = scaled.softmax(dim=-1)
    if order is not None:
        before = probability.cumsum(dim=-1, dtype=exact) - probability
        left_out = ((before >= top_p) & (top_p < 1)) | (probability < min_p.float() * probability[:, :1])
        probability = probability.masked_fill(left_out, 0)  # the first always stays
    cumulative = probability.cumsum(dim=-1, dtype=exact)
    target = uniform.clamp(max=1 - 1e-7) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.size(-1) - 1)  # (B, 1)
    drawn = drawn if order is None else order.gather(1, drawn)
    return torch.where(finite, torch.where(temperature > 0, drawn, best.unsqueeze(1)).squeeze(1), -1)
