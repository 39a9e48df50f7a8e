"""Attention and rotary tables, one function per shape of problem.

Legend: B rows, T new tokens, S keys, H query heads, K key/value heads, D head width, W window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nutshell.model.flash import KERNELS as FLASH_KERNELS
from nutshell.model.flash import Documents, document_offsets, flash_attention
from nutshell.model.kv_cache import Slots

QUERY_BLOCK = 256  # queries scored at once: the scores of one block stay in a CPU's cache

Mask = Any
"""Which keys each query may see, in the form that a kernel takes. Made by `make_mask`, once per batch and window."""


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What all attention layers share in one forward pass: positions, and which keys each token may see."""

    positions: Tensor
    """(T,), or (B, T) where each row is at a position of its own."""
    cos: Tensor
    """(T, 1, D), or (B, T, 1, D) where each row is at a position of its own."""
    sin: Tensor
    masks: dict[int, Mask] = field(default_factory=dict)
    """Whole rows: the mask of each window."""
    slots: Slots | None = None
    """Decoding: where the new keys and values go in the KV cache."""

    def attend(self, layer: int, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of the tokens q (B, T, H, D) over k and v (B, T, K, D) and what the cache holds: (B, T, H, D)."""
        if self.slots is None:
            return causal_attention(q, k, v, self.masks[window])
        slots, cache = self.slots, self.slots.cache
        slots.write(layer, k, v)
        if cache.paged:
            from nutshell.model.paged_attention import paged_attention

            return paged_attention(q, cache.keys[layer], cache.values[layer], slots.tables, slots.start, window)
        return decode_attention(q, *slots.gather(layer), slots.start, window)


def rotary_tables(context: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (context, 1, D) of the rotary position embedding (arXiv 2104.09864).

    With the halves a, b of a head swapped: (a, b) cos + (b, a) sin, in passes over whole heads.
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency).unsqueeze(1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([sin, -sin], dim=-1)


def make_mask(documents: Tensor, window: int, kernel: str, dtype: torch.dtype, offsets: Tensor | None = None) -> Mask:
    """Each token sees itself and the `window - 1` tokens before it that belong to its document.

    documents (B, T) numbers the document of each token. Kernel "flex": a BlockMask. Kernels "flash3" and "varlen": the documents'
    `offsets`, worked out here where they are not given. Kernel "blocked": for each block of queries (first query, end, first
    key, bias (B, 1, queries, keys)), with only the keys that at least one of its queries can see.
    """
    B, T = documents.shape
    if kernel in FLASH_KERNELS:
        return Documents(document_offsets(documents) if offsets is None else offsets, T, window, kernel)
    if kernel == "flex":

        def visible(b, h, q, k):
            return (k <= q) & (k > q - window) & (documents[b, q] == documents[b, k])

        return _flex("create_block_mask")(visible, B, None, T, T, device=documents.device)
    block = min(QUERY_BLOCK, window, T)
    positions = torch.arange(T, device=documents.device)
    pieces = []
    for start in range(0, T, block):
        end, first = min(start + block, T), max(0, start - window + 1) // block * block
        queries, keys = positions[start:end].unsqueeze(1), positions[first:end]
        seen = (keys <= queries) & (keys > queries - window)
        seen = seen & (documents[:, start:end].unsqueeze(2) == documents[:, first:end].unsqueeze(1))  # (B, queries, keys)
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
        pieces.append((start, end, first, bias.unsqueeze(1)))
    return pieces


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention of whole rows under a mask of `make_mask`. q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H, D)."""
    groups = q.size(2) // k.size(2)
    if isinstance(mask, Documents):
        return flash_attention(q, k, v, mask)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    if isinstance(mask, list):
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return _blocked_attention(q, k.contiguous(), v.contiguous(), mask).transpose(1, 2)
    return _flex("flex_attention")(q, k, v, block_mask=mask, enable_gqa=groups > 1).transpose(1, 2)


def _flex(name: str) -> Any:
    """A function of FlexAttention. In eager mode it is compiled, because uncompiled it would write all T x T scores."""
    from torch.nn.attention import flex_attention

    return getattr(flex_attention, name) if torch.compiler.is_compiling() else _compiled_flex(name)


@cache
def _compiled_flex(name: str) -> Any:
    from torch.nn.attention import flex_attention

    return torch.compile(getattr(flex_attention, name))


def _blocked_attention(q: Tensor, k: Tensor, v: Tensor, pieces: list) -> Tensor:
    """Matrix products of blocks. On CPU they run bf16 at full rate, torch's fused kernel at a third (docs/experiments.md)."""
    block = pieces[0][1]
    q = (q * q.size(-1) ** -0.5).contiguous()
    # Split and concatenated, not sliced: the gradient of each slice would be a whole tensor, mostly zeros.
    q_blocks, k_blocks, v_blocks = (x.split(block, dim=2) for x in (q, k, v))
    outputs = []
    for i, (_, _, first, bias) in enumerate(pieces):
        keys, values = (torch.cat(x[first // block : i + 1], dim=2) for x in (k_blocks, v_blocks))
        scores = q_blocks[i] @ keys.transpose(2, 3)  # (B, H, queries, keys)
        scores += bias
        outputs.append(scores.softmax(dim=-1) @ values)
    return torch.cat(outputs, dim=2)


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
