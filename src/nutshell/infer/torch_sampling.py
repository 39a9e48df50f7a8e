"""`sampling.draw` on an accelerator; what the native code is tested against.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_in_torch(logits: Tensor, rows: Sequence[tuple[float, int, float, float, float]]) -> Tensor:
    """Tokens (B,) of logits (B, V), each row with (temperature, top_k, top_p, min_p, uniform number)."""
    device, V = logits.device, logits.size(-1)
    temperatures, restrictions, masses, floors, uniforms = zip(*rows, strict=True)
    exact = torch.float32 if device.type == "mps" else torch.float64  # 32k fp32 additions lose the rare tokens
    restricted = any(top_k or top_p < 1 or min_p for _, top_k, top_p, min_p, _ in rows)
    logits, order = logits.float(), None
    top_k = [min(count or V, V) for count in restrictions]
    if restricted:
        logits, order = logits.topk(max(top_k), dim=-1)  # most likely first
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / _column(temperatures, torch.float32, device)
    if restricted:
        position = torch.arange(scaled.size(-1), device=device)
        scaled = scaled.masked_fill(position >= _column(top_k, torch.long, device), -math.inf)
    probability = scaled.softmax(dim=-1)
    if restricted:
        top_p, min_p = _column(masses, exact, device), _column(floors, torch.float32, device)
        before = probability.cumsum(dim=-1, dtype=exact) - probability
        left_out = ((before >= top_p) & (top_p < 1)) | (probability < min_p * probability[:, :1])
        probability = probability.masked_fill(left_out, 0)  # the first always stays
    cumulative = probability.cumsum(dim=-1, dtype=exact)
    target = _column(uniforms, exact, device).clamp(max=1 - 1e-7) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.size(-1) - 1)  # (B, 1)
    return (drawn if order is None else order.gather(1, drawn)).squeeze(1)


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)
