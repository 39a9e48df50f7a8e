"""Finds attention kernels that work here by running them: an import proves nothing (karpathy/nanochat issue 820)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nutshell.model.attention import causal_attention, decode_attention, make_mask
from nutshell.model.config import ModelConfig
from nutshell.model.flash import load_kernel
from nutshell.model.kv_blocks import BLOCK, blocks_of
from nutshell.model.kv_cache import KVCache

PREFERENCE = ("flash3", "flex", "varlen", "blocked")
"""FlashAttention-3; FlexAttention, which needs a working compiler; torch's own kernel for documents; blocks of plain products.
All of them skip what lies outside the window."""


def choose_attention(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The first kernel that works here, and one line that says why. Off CUDA it is plain products, and nothing is tried."""
    if device.type != "cuda":
        return "blocked", "plain products in blocks"
    return first_that_runs(PREFERENCE, device, dtype)


def first_that_runs(
    kernels: tuple[str, ...], device: torch.device, dtype: torch.dtype, *, compiled: bool = True
) -> tuple[str, str]:
    refused = []
    for kernel in kernels[:-1]:
        try:
            if kernel in ("flash3", "varlen"):
                load_kernel(kernel)
            launch(kernel, device, dtype, compiled)
        except ImportError:
            refused.append(f"{kernel} is not installed")
        except Exception as error:  # whatever a broken build, compiler or driver raises, the next kernel may work
            refused.append(f"{kernel} does not run here ({_in_short(error)})")
        else:
            return kernel, "; ".join([kernel, *refused])
    return kernels[-1], "; ".join([kernels[-1], *refused])


def launch(kernel: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    """Forward and backward of two documents under a window, compared with plain products. RuntimeError where they differ."""
    # Drawn on CPU, so that the numbers are the same everywhere.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 256, heads, 128, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    documents = torch.zeros(2, 256, dtype=torch.long, device=device)
    documents[1, 100:] = 1
    attend = torch.compile(causal_attention) if compiled else causal_attention
    results: list[list[Any]] = []
    for name, function, precision in (("blocked", causal_attention, torch.float32), (kernel, attend, dtype)):
        a, b, c = leaves = [x.detach().to(precision, copy=True).requires_grad_() for x in (q, k, v)]
        y = function(a, b, c, make_mask(documents, 64, name, precision))
        y.square().sum().backward()
        results.append([y.detach(), *(x.grad for x in leaves)])
    for expected, found in zip(*results, strict=True):
        _compare(found, expected)


def why_not_paged(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why attention over the blocks of a KV cache does not run here for this shape; None where it does what copies of them do."""
    try:
        from nutshell.model.paged_attention import paged_attention
    except ImportError:
        return "Triton is not installed"
    generator = torch.Generator().manual_seed(0)
    columns = blocks_of(min(config.context, 600))
    cache = KVCache(replace(config, depth=1), 2 * columns, device, dtype)
    tables = torch.randperm(2 * columns, generator=generator).view(2, columns).to(device)
    try:
        for tokens, window in ((1, config.context), (3, 17)):
            for numbers in (cache.keys, cache.values):
                numbers.copy_(torch.randn(numbers.shape, generator=generator))
            q = torch.randn(2, tokens, config.heads, config.head_dim, generator=generator).to(device, dtype)
            start = torch.tensor([BLOCK * columns - tokens, 5], device=device)
            keys, values = cache.slots(tables, start, tokens).gather(0)
            found = paged_attention(q, cache.keys[0], cache.values[0], tables, start, window)
            _compare(found, decode_attention(q.float(), keys.float(), values.float(), start, window))
    except Exception as error:  # whatever a compiler or a driver raises, copies still work
        return _in_short(error)
    return None


def _compare(found: Tensor, expected: Tensor) -> None:
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not error < 0.05:  # rounding to bf16 alone causes up to 0.8%
        raise RuntimeError(f"its results differ from those of plain products by {error:.1%}")


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
