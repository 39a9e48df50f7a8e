"""Keys and values of the tokens that each row has seen, so that a decoding step computes only the new token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class KVCache:
    """Fixed rows of `capacity` tokens each, for all layers.

    `lengths` (rows,) says how many tokens of a row are real. `previous` (rows,) is the last token of a row, -1 when it is
    empty: the smear of the next token needs it.
    """

    def __init__(self, config, rows: int, capacity: int | None = None, device="cpu", dtype=torch.float32) -> None:
        self.capacity = min(capacity or config.context, config.context)
        # One position more than the capacity: padding beyond the end is written there and never read.
        shape = (config.depth, rows, config.kv_heads, self.capacity + 1, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.previous = torch.full((rows,), -1, dtype=torch.long, device=device)

    @property
    def rows(self) -> int:
        return self.keys.size(1)

    def reset(self, row: int) -> None:
        """Empty a row; the next tokens overwrite its memory."""
        self.lengths[row] = 0
        self.previous[row] = -1

    def copy(self, source: int, targets: Tensor) -> None:
        """Give `targets` (N,) the state of row `source`, so that samples of one prompt share its prefill."""
        length = int(self.lengths[source])
        self.keys[:, targets, :, :length] = self.keys[:, source : source + 1, :, :length]
        self.values[:, targets, :, :length] = self.values[:, source : source + 1, :, :length]
        self.lengths[targets] = length
        self.previous[targets] = int(self.previous[source])

    def slots(self, rows: Tensor, tokens: int) -> Slots:
        """Where the next `tokens` tokens of the rows (B,) go, computed once for all layers."""
        start = self.lengths[rows]
        positions = (start.unsqueeze(1) + torch.arange(tokens, device=start.device)).clamp_(max=self.capacity)  # (B, T)
        longest = min(int(start.max()) + tokens, self.capacity + 1)
        first, count = int(rows[0]), rows.numel()
        neighbours = int(rows[-1]) - first == count - 1 and (count < 3 or bool((rows.diff() == 1).all()))
        return Slots(self, slice(first, first + count) if neighbours else rows, start, positions, longest)

    def advance(self, rows: Tensor, ids: Tensor, counts: Tensor) -> None:
        """Count the first counts[b] tokens of ids (B, T) as part of the rows."""
        self.lengths[rows] += counts
        last = ids.gather(1, (counts - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        self.previous[rows] = torch.where(counts > 0, last, self.previous[rows])


@dataclass(frozen=True)
class Slots:
    """The positions that one decoding step writes, and how far its rows reach."""

    cache: KVCache
    rows: slice | Tensor
    """Neighbouring rows are a slice, whose keys are read in place; others are gathered."""
    start: Tensor
    positions: Tensor
    longest: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, T, K, D) behind the rows' tokens; returns all of theirs, (B, K, S, D) each.

        The lengths stay as they are until `advance`: every layer writes at the same place.
        """
        batch = torch.arange(keys.size(0), device=keys.device).unsqueeze(1)
        results = []
        for store, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            if isinstance(self.rows, slice):
                filled = store[self.rows]
                filled.transpose(1, 2)[batch, self.positions] = new
            else:
                store.transpose(1, 2)[self.rows.unsqueeze(1), self.positions] = new
                filled = store[self.rows]
            results.append(filled[:, :, : self.longest])
        return results[0], results[1]
