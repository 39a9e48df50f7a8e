"""Keys and values of the tokens so far, so that a decoding step computes only the new token.

Memory is cut into blocks of tokens (`kv_blocks.py`): a row occupies any blocks in any order, and rows that begin alike
may share some. Who gets which block is decided elsewhere (`infer/blocks.py`).

Legend: B rows of a step, T new tokens of each, S tokens of the longest, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nutshell.model.kv_blocks import BLOCK, blocks_of


class KVCache:
    """Blocks of keys (layers, blocks, K, D, BLOCK) and values (layers, blocks, K, BLOCK, D), and `rows` rows of up to `capacity`
    tokens in them.

    Token t of a row lies in block tables[row, t // BLOCK]. `lengths` (rows,) says how many tokens of a row are real, `previous`
    (rows,) which was the last, -1 where there is none: the smear of the next token needs it. At first each row has blocks of
    its own; with fewer `blocks` than that the caller writes the tables. `paged` says whether attention reads the blocks where
    they lie (`paged_attention.py`) or copies of them.
    """

    paged = False

    def __init__(self, config, rows: int, capacity=None, device="cpu", dtype=torch.float32, *, blocks=None) -> None:
        self.capacity = min(capacity or config.context, config.context)
        of_a_row = blocks_of(self.capacity)
        blocks = blocks or rows * of_a_row
        shape = (config.depth, blocks, config.kv_heads, BLOCK, config.head_dim)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.keys = torch.zeros_like(self.values).view(*shape[:3], config.head_dim, BLOCK)
        self.tables = (torch.arange(rows * of_a_row, device=device) % blocks).view(rows, of_a_row)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.previous = torch.full((rows,), -1, dtype=torch.long, device=device)

    @property
    def rows(self) -> int:
        return self.tables.size(0)

    def touch(self) -> None:
        """Write all of it, so that memory which the operating system has promised and does not have is missed now."""
        self.keys.zero_()
        self.values.zero_()

    def clear(self, blocks: Tensor) -> None:
        """Zero blocks (N,). A mask hides old numbers, but not old NaNs, since zero times NaN is NaN."""
        if blocks.numel():
            self.keys[:, blocks] = 0
            self.values[:, blocks] = 0

    def slots(self, rows: Tensor, tokens: int, reach: int | None = None) -> Slots:
        """Where the next `tokens` tokens of the rows (B,) go, computed once for all layers. No row is longer than `reach` with
        them; where that is not given the device is asked, and waited for."""
        start = self.lengths[rows]
        positions = start.unsqueeze(1) + torch.arange(tokens, device=start.device)  # (B, T)
        longest = reach or int(start.max()) + tokens
        tables = self.tables[rows, : blocks_of(longest)]
        return Slots(self, start, positions, tables, tables.gather(1, positions // BLOCK), positions % BLOCK, longest)

    def advance(self, rows: Tensor, ids: Tensor) -> None:
        """Count the tokens ids (B, T) as part of the rows."""
        self.lengths[rows] += ids.size(1)
        self.previous[rows] = ids[:, -1]


@dataclass(frozen=True)
class Slots:
    """The positions that one decoding step writes, and how far its rows reach."""

    cache: KVCache
    start: Tensor
    positions: Tensor
    tables: Tensor
    blocks: Tensor
    """(B, T) block of each new token, and its place there."""
    offsets: Tensor
    longest: int

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put new keys and values (B, T, K, D) behind the rows' tokens.

        The lengths stay as they are until `advance`: every layer writes at the same place.
        """
        self.cache.keys[layer].transpose(2, 3)[self.blocks, :, self.offsets] = keys
        self.cache.values[layer][self.blocks, :, self.offsets] = values

    def gather(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of all keys and values of the rows, (B, K, S, D) each."""
        stores = self.cache.keys[layer].transpose(2, 3), self.cache.values[layer]  # (blocks, K, BLOCK, D)
        keys, values = (store[self.tables].transpose(1, 2).flatten(2, 3) for store in stores)
        return keys[:, :, : self.longest], values[:, :, : self.longest]
