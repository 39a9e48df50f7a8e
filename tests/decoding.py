"""Rows of a KV cache that grow by what a model is fed."""

import torch

from nutshell.model.kv_blocks import blocks_of
from nutshell.model.kv_cache import KVCache


class Rows:
    """Each with blocks of its own for a whole context, and empty."""

    def __init__(self, model, rows: int, device="cpu", dtype=torch.float32) -> None:
        each = blocks_of(model.config.context)
        self.model, self.cache = model, KVCache(model.config, rows * each, device, dtype)
        self.tables = torch.arange(rows * each, device=device).view(rows, each)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.previous = torch.full((rows,), -1, device=device)

    def feed(self, ids: torch.Tensor, rows=slice(None), **options) -> torch.Tensor:
        """Logits (B, T, V) of the tokens ids (B, T), which follow what these rows hold."""
        place = self.tables[rows], self.lengths[rows], self.previous[rows]
        logits = self.model.decode(ids, self.cache, *place, **options)
        self.lengths[rows] += ids.size(1)
        self.previous[rows] = ids[:, -1]
        return logits
