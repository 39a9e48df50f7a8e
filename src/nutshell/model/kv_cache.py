"""Keys and values of the tokens so far, so that a decoding step computes only the new tokens.

Memory is cut into blocks of tokens (`kv_blocks.py`): a row occupies any blocks in any order, and rows that begin alike may share
some. Who gets which block is decided elsewhere (`infer/blocks.py`).

Legend: B rows of a step, T new tokens of each, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nutshell.model.config import ModelConfig
from nutshell.model.kv_blocks import BLOCK


class KVCache:
    """Keys (layers, blocks, K, D, BLOCK) and values (layers, blocks, K, BLOCK, D). `paged` says whether attention reads the
    blocks where they lie (`paged_attention.py`) or copies of them."""

    paged = False

    def __init__(
        self, config: ModelConfig, blocks: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (config.depth, blocks, config.kv_heads, BLOCK, config.head_dim)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.keys = torch.zeros_like(self.values).view(*shape[:3], config.head_dim, BLOCK)

    def touch(self) -> None:
        """Write all of it, so that memory which the operating system has promised and does not have is missed now."""
        self.keys.zero_()
        self.values.zero_()

    def clear(self, blocks: Tensor) -> None:
        """Zero blocks (N,). A mask hides old numbers, but not old NaNs, since zero times NaN is NaN."""
        if blocks.numel():
            self.keys[:, blocks] = 0
            self.values[:, blocks] = 0

    def slots(self, tables: Tensor, start: Tensor, tokens: int) -> Slots:
        """Where the next `tokens` tokens of rows go that hold `start` (B,) tokens. Token t of row b lies in block
        tables[b, t // BLOCK]."""
        start = start.contiguous()
        positions = start.unsqueeze(1) + torch.arange(tokens, device=start.device)  # (B, T)
        return Slots(self, tables, start, positions, tables.gather(1, positions // BLOCK), positions % BLOCK)


@dataclass(frozen=True)
class Slots:
    """Where one decoding step writes; computed once for all layers."""

    cache: KVCache
    tables: Tensor
    start: Tensor
    positions: Tensor
    blocks: Tensor
    """(B, T) block of each new token, and its place there."""
    offsets: Tensor

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put new keys and values (B, T, K, D) behind the rows' tokens."""
        self.cache.keys[layer].transpose(2, 3)[self.blocks, :, self.offsets] = keys
        self.cache.values[layer][self.blocks, :, self.offsets] = values

    def gather(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of the rows' blocks of keys and values, (B, K, tokens, D) each; those behind a row's end hold anything."""
        stores = self.cache.keys[layer].transpose(2, 3), self.cache.values[layer]  # (blocks, K, BLOCK, D)
        keys, values = (store[self.tables].transpose(1, 2).flatten(2, 3) for store in stores)
        return keys, values
