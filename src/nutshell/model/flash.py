"""Attention of many documents laid end to end, by kernels that take document boundaries: FlashAttention-3, or torch's own.

Legend: B rows, T tokens in a row, N = B T, H query heads, K key/value heads, D head width, W window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

KERNELS = ("flash3", "varlen")
"""FlashAttention-3 (Hopper, the package `flash_attn_interface`), and `torch.nn.attention.varlen`, which comes with torch."""


class Documents(NamedTuple):
    """What a layer's tokens may see: the documents of a batch and the layer's window."""

    offsets: Tensor
    """int32: document i is the tokens offsets[i] to offsets[i + 1] of the flattened batch; those at the end may be empty."""
    longest: int
    """No document is longer than this."""
    window: int
    kernel: str


def document_offsets(documents: Tensor) -> Tensor:
    """Where the documents of a batch begin and end in its flattened tokens, int32, from their numbers (B, T).

    A row begins a document of its own. Empty documents at the end make their number a power of two: few sizes to compile for.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = starts.flatten().nonzero().flatten()
    offsets = documents.new_full(((1 << (len(first) - 1).bit_length()) + 1,), documents.numel(), dtype=torch.int32)
    offsets[: len(first)] = first
    return offsets


def flash_arguments(q: Tensor, k: Tensor, v: Tensor, mask: Documents) -> tuple[tuple, dict[str, Any]]:
    """Arguments for FlashAttention-3. A window of W tokens, the query included, reaches W - 1 to the left and 0 to the right."""
    left = -1 if mask.window >= mask.longest else mask.window - 1
    sizes = {"max_seqlen_q": mask.longest, "max_seqlen_k": mask.longest}
    flat = tuple(x.flatten(0, 1) for x in (q, k, v))  # (N, heads, D)
    return flat, {
        "cu_seqlens_q": mask.offsets, "cu_seqlens_k": mask.offsets, **sizes, "causal": True, "window_size": (left, 0),
    }  # fmt: skip


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Documents) -> Tensor:
    """Causal attention within documents and the window. q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H, D)."""
    flat, named = flash_arguments(q, k, v, mask)
    y = load_kernel(mask.kernel)(*flat, **named)
    return (y[0] if isinstance(y, tuple) else y).view(q.shape)  # older builds also return the log-sum-exp


@cache
def load_kernel(name: str) -> Callable[..., Any]:
    """The kernel's function, called as FlashAttention-3's `flash_attn_varlen_func`. ImportError where there is none."""
    if name == "flash3":
        from flash_attn_interface import flash_attn_varlen_func  # built from Dao-AILab/flash-attention, folder hopper

        return flash_attn_varlen_func
    from torch.nn.attention.varlen import varlen_attn

    def torch_varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window_size):
        if k.size(1) != q.size(1):
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size=window_size)

    return torch_varlen
