"""Attention of new tokens over a paged KV cache, as kernels in Triton for CUDA: each row's keys are read where its block table
says they lie, and only those that its window reaches (arXiv 2309.06180).

Long rows are cut at fixed places, and the parts of a row are computed side by side and then combined (Flash-Decoding,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Fixed places, because then a row's numbers do not depend on the rows
beside it. The softmax is computed as it goes (arXiv 1805.02867), in powers of two, which GPUs have an instruction for.

Import this where there is Triton: it comes with torch for CUDA. `probe.py` compares it with `decode_attention` before it is used.

Legend: B rows, T new tokens of each, H query heads, K key/value heads, D head width.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nutshell.model.kv_blocks import BLOCK

PART_KEYS, MOST_PARTS = 256, 16
"""A row is cut into parts of so many keys, and long ones into so many parts."""

TILE_KEYS = 64
"""Keys in registers at once."""


def options(bytes_of_a_number: int) -> dict[str, int]:
    """For Triton's compiler: threads of a program in groups of 32, so many that no register spills into memory at head widths up
    to 128; tiles that are on their way at once; and a * b + c is one instruction."""
    return {"num_warps": 2 * bytes_of_a_number, "num_stages": 3, "enable_fp_fusion": True}


def paged_attention(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, start: Tensor, window: int) -> Tensor:
    """q (B, T, H, D) are the tokens at positions start[b] + t. Keys (blocks, K, D, BLOCK) and values (blocks, K, BLOCK, D) hold
    them and all before: token t of row b in block tables[b, t // BLOCK]. Returns (B, T, H, D)."""
    assert start.is_contiguous()
    assert tables.stride(1) == 1
    assert keys[0].is_contiguous()
    assert values[0].is_contiguous()
    B, T, H, D = q.shape
    K = keys.size(1)
    context = BLOCK * tables.size(1)
    part = max(PART_KEYS, context // MOST_PARTS) if T == 1 else context  # a prompt has queries enough to keep a GPU busy
    part = TILE_KEYS * triton.cdiv(part, TILE_KEYS)
    parts = triton.cdiv(context, part)
    wide = max(16, triton.next_power_of_2(D))  # matrix units take no less
    queries = min(64 if q.element_size() == 2 else 16, max(16, triton.next_power_of_2(T * H // K)))
    sums = torch.empty(B, T, H, parts, D, dtype=torch.float32, device=q.device)
    norms = torch.empty(B, T, H, parts, 2, dtype=torch.float32, device=q.device)
    tiles = triton.cdiv(T * H // K, queries)
    _attend[(parts, K, B * tiles)](
        q.contiguous(), keys, values, tables, start, sums, norms, T, window, part, math.log2(math.e) / math.sqrt(D),
        tables.stride(0), keys.stride(0), GROUP=H // K, D=D, WIDE=wide, BLOCK=BLOCK, QUERIES=queries, KEYS=TILE_KEYS,
        **options(q.element_size()),
    )  # fmt: skip
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _combine[(B * T * H,)](sums, norms, y, parts, D=D, WIDE=wide, PARTS=triton.next_power_of_2(parts), **options(2))
    return y


@triton.jit(do_not_specialize=["tokens", "window", "table_stride"])  # else it is compiled anew for 1 and for multiples of 16
def _attend(
    q, keys, values, tables, start, sums, norms, tokens, window, part, scale, table_stride, block_stride,
    GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: some queries of one row that share a key/value head, over one part of the row's keys."""
    number, parts, kv_head, kv_heads = tl.program_id(0), tl.num_programs(0), tl.program_id(1), tl.num_programs(1)
    tiles = tl.cdiv(tokens * GROUP, QUERIES)
    row, tile = tl.program_id(2) // tiles, tl.program_id(2) % tiles
    before = tl.load(start + row)
    query = tile * QUERIES + tl.arange(0, QUERIES)  # all heads of a token, then the next token
    token, head = query // GROUP, kv_head * GROUP + query % GROUP
    dim, position = tl.arange(0, WIDE), before + token
    place = (row * tokens + token) * (kv_heads * GROUP) + head
    real = (token < tokens)[:, None] & (dim < D)[None, :]
    these = tl.load(q + place[:, None] * D + dim[None, :], mask=real, other=0.0)

    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y = tl.zeros([QUERIES, WIDE], tl.float32)
    oldest = before + tile * QUERIES // GROUP - window + 1
    newest = before + tl.minimum((tile * QUERIES + QUERIES - 1) // GROUP, tokens - 1)
    first = tl.maximum(oldest, number * part) // KEYS * KEYS
    end = tl.minimum(newest + 1, (number + 1) * part)
    for begin in range(first, end, KEYS):
        key = begin + tl.arange(0, KEYS)
        # Masks of whole blocks and of whole keys: the compiler then knows that neighbours are loaded together, 16 bytes at once.
        in_block = key // BLOCK * BLOCK < end
        block = tl.load(tables + row * table_stride + key // BLOCK, mask=in_block, other=0)
        head_of_block = block * block_stride + kv_head * (D * BLOCK)
        near = keys + head_of_block[None, :] + dim[:, None] * BLOCK + (key % BLOCK)[None, :]
        k = tl.load(near, mask=in_block[None, :] & (dim < D)[:, None], other=0.0)
        score = tl.dot(these, k, input_precision="ieee") * scale
        seen = (key < end)[None, :] & (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        level = tl.where(higher == -float("inf"), 0.0, higher)  # a query may see nothing of this tile
        weight, shrink = tl.exp2(score - level[:, None]), tl.exp2(highest - level)
        near = values + head_of_block[:, None] + (key % BLOCK)[:, None] * D + dim[None, :]
        v = tl.load(near, mask=(key < end)[:, None] & (dim < D)[None, :], other=0.0)
        y = y * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * shrink + tl.sum(weight, 1)
        highest = higher

    out = place * parts + number
    tl.store(sums + out[:, None] * D + dim[None, :], y, mask=real)
    tl.store(norms + 2 * out, highest, mask=token < tokens)
    tl.store(norms + 2 * out + 1, total, mask=token < tokens)


@triton.jit(do_not_specialize=["parts"])
def _combine(sums, norms, y, parts, D: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr):
    """One program: the parts of one query and head."""
    part, dim = tl.arange(0, PARTS), tl.arange(0, WIDE)
    at = tl.program_id(0) * parts + part
    highest = tl.load(norms + 2 * at, mask=part < parts, other=-float("inf"))
    total = tl.load(norms + 2 * at + 1, mask=part < parts, other=0.0)
    share = tl.exp2(highest - tl.max(highest, 0))
    mask = (part < parts)[:, None] & (dim < D)[None, :]
    sum_of_parts = tl.sum(tl.load(sums + at[:, None] * D + dim[None, :], mask=mask, other=0.0) * share[:, None], 0)
    tl.store(y + tl.program_id(0) * D + dim, (sum_of_parts / tl.sum(total * share, 0)).to(y.dtype.element_ty), mask=dim < D)
