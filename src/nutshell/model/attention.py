"""Attention and rotary tables, one function per shape of problem.

Legend: B rows, T new tokens, S keys, H query heads, K key/value heads, D head width, W window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROTARY_BASE = 100_000.0
CPU_QUERY_BLOCK = 256  # queries scored at once on CPU: the scores of a block stay in the cache


def rotary_tables(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, 1, D/2) of the rotary position embedding (arXiv 2104.09864)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency).unsqueeze(1)
    return angle.cos().float(), angle.sin().float()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None) -> Tensor:
    """Each token attends over itself and the `window - 1` tokens before it. (B, T, H|K, D) -> (B, T, H, D).

    `documents` (B, T) numbers the document of each token; where it is given, attention stays inside a document.
    """
    groups = q.size(2) // k.size(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    if q.device.type == "cpu":
        # torch's fused CPU kernel runs bf16 at a third of the rate of plain products of blocks (docs/experiments.md).
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = _blocked_attention(q, k, v, window, documents)
    elif window >= q.size(2) and documents is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    else:
        y = _windowed_attention(q, k, v, min(window, q.size(2)), documents)
    return y.transpose(1, 2)


def visible(queries: Tensor, keys: Tensor, window: int, documents: Tensor | None) -> Tensor:
    """Which keys each query may see, by their positions: (B or 1, queries, keys), true = visible."""
    mask = (keys <= queries.unsqueeze(1)) & (keys > queries.unsqueeze(1) - window)
    if documents is None:
        return mask.unsqueeze(0)
    return mask & (documents[:, queries].unsqueeze(2) == documents[:, keys].unsqueeze(1))


def _blocked_attention(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None) -> Tensor:
    """Blocks of queries against just the keys they can see; plain products, which run bf16 at full rate on CPU."""
    T, D = q.size(2), q.size(3)
    q = q * D**-0.5
    block = min(CPU_QUERY_BLOCK, T)
    positions = torch.arange(T, device=q.device)
    outputs = []
    for start in range(0, T, block):
        end = min(start + block, T)
        first_key = max(0, start - window + 1)
        mask = visible(positions[start:end], positions[first_key:end], window, documents)
        scores = q[:, :, start:end] @ k[:, :, first_key:end].transpose(2, 3)  # (B, H, block, keys)
        scores += torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf")).unsqueeze(1)
        outputs.append(scores.softmax(dim=-1) @ v[:, :, first_key:end])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None) -> Tensor:
    """Queries in blocks of W tokens see their own and the previous block, so that cost grows with T*W, not T*T."""
    B, H, T, D = q.shape
    groups = H // k.size(1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    blocks = -(-T // window)
    padding = blocks * window - T
    q, k, v = (F.pad(x, (0, 0, 0, padding)).reshape(B, H, blocks, window, D) for x in (q, k, v))

    def with_previous(x: Tensor) -> Tensor:  # (..., blocks, W, D) -> (..., blocks, 2W, D)
        return torch.cat([F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3)

    query = torch.arange(window, device=q.device).view(1, window, 1) + window
    key = torch.arange(2 * window, device=q.device).view(1, 1, 2 * window)
    has_past = torch.arange(blocks, device=q.device).view(blocks, 1, 1) > 0
    mask = ((key <= query) & (key > query - window) & (has_past | (key >= window))).unsqueeze(0)  # (1, blocks, W, 2W)
    if documents is not None:
        ids = F.pad(documents, (0, padding), value=-1).view(B, blocks, window)
        key_ids = torch.cat([F.pad(ids[:, :-1], (0, 0, 1, 0), value=-2), ids], dim=2)
        mask = mask & (ids.unsqueeze(3) == key_ids.unsqueeze(2))
    mask = mask.unsqueeze(1).expand(B, H, -1, -1, -1).reshape(B * H, blocks, window, 2 * window)
    y = F.scaled_dot_product_attention(
        q.reshape(B * H, blocks, window, D),
        with_previous(k).reshape(B * H, blocks, 2 * window, D),
        with_previous(v).reshape(B * H, blocks, 2 * window, D),
        attn_mask=mask,
    )
    return y.reshape(B, H, blocks * window, D)[:, :, :T]


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, window: int) -> Tensor:
    """New tokens of each row attend over that row's cache.

    q (B, T, H, D) are the tokens at positions lengths[b] + t; keys and values (B, K, S, D) hold them and all before.
    Returns (B, T, H, D).
    """
    T, S = q.size(1), keys.size(2)
    query = lengths.view(-1, 1, 1) + torch.arange(T, device=q.device).view(1, T, 1)  # (B, T, 1)
    key = torch.arange(S, device=q.device).view(1, 1, S)
    mask = (key <= query) & (key > query - window)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask.unsqueeze(1), enable_gqa=q.size(2) != keys.size(1)
    )
    return y.transpose(1, 2)
