"""The `Runner` of any model on any device: it calls the model in torch.

Legend: B sequences in a call, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nutshell.infer.blocks import Chunk
from nutshell.infer.cuda_graphs import DecodeGraphs
from nutshell.infer.runner import LOGITS_AT_ONCE
from nutshell.infer.sampling import Logits
from nutshell.model.kv_blocks import BLOCK, blocks_of
from nutshell.model.kv_cache import KVCache

FIXED = 2
"""Columns of a table of sequences before the blocks: tokens in the cache, and the token before the first new one."""


class TorchRunner:
    """The reference. With `graphs` the steps of decoding are recorded, on CUDA."""

    def __init__(
        self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None, *, graphs: bool = False
    ) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, rows, context, self.device, model.compute_dtype, blocks=blocks)
        self.graphs: DecodeGraphs | None = None
        if graphs and self.device.type == "cuda":
            limits = rows, self.cache.tables.size(1)
            self.graphs = DecodeGraphs(self._decode, limits, FIXED + 1, self.device)

    def take_weights(self) -> None:
        pass  # the model is called itself

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> tuple[Any, list[int]]:
        logits = torch.empty(len(chunks), self.vocab_size, device=self.device)
        for length in {len(chunk.ids) for chunk in chunks}:  # no padding: the single tokens of decoding go together
            group = [place for place, chunk in enumerate(chunks) if len(chunk.ids) == length]
            logits[group] = self._call([chunks[place] for place in group])
        finite = torch.isfinite(logits).all(dim=-1)
        best = torch.where(finite, logits.argmax(dim=-1), -1).tolist()
        return (logits.numpy() if logits.device.type == "cpu" else logits), best

    @torch.inference_mode()
    def prompt_logits(self, ids: Sequence[int], blocks: Sequence[int]) -> Iterator[Logits]:
        """One whole row, without the cache."""
        row = torch.tensor([list(ids)], device=self.device)
        hidden = self.model.hidden_states(row, self.model.rows_context(row))[0]  # (T, C)
        for some in hidden.split(max(1, LOGITS_AT_ONCE // self.vocab_size)):
            yield self.model.head(some)[:, : self.vocab_size].cpu().numpy()

    def _call(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits (B, V) of chunks of one length."""
        used = [list(chunk.blocks[: blocks_of(chunk.start + len(chunk.ids))]) for chunk in chunks]
        fresh = [block for chunk, blocks in zip(chunks, used, strict=True) for block in blocks[blocks_of(chunk.start) :]]
        self.cache.clear(torch.tensor(fresh, dtype=torch.long, device=self.device))
        most = max(map(len, used))
        table = torch.tensor(  # what lies behind a row's last block is masked
            [
                [*chunk.ids, chunk.start, chunk.previous, *blocks, *blocks[-1:] * (most - len(blocks))]
                for chunk, blocks in zip(chunks, used, strict=True)
            ]
        )
        if self.graphs is not None and len(chunks[0].ids) == 1:
            return self.graphs(table)
        return self._decode(table, len(chunks[0].ids))

    def _decode(self, table: Tensor, tokens: int = 1) -> Tensor:
        """Logits (B, V) of a row for each sequence: its new tokens, how many the cache holds, the token before, its blocks."""
        table = table.to(self.device)
        ids, start, previous, blocks = table.split([tokens, 1, 1, table.size(1) - tokens - FIXED], dim=1)
        rows = torch.arange(len(table), device=self.device)
        self.cache.tables[: len(table), : blocks.size(1)] = blocks
        self.cache.lengths[: len(table)] = start[:, 0]
        self.cache.previous[: len(table)] = previous[:, 0]
        reach = BLOCK * blocks.size(1)
        return self.model.decode(ids, self.cache, rows, last_only=True, reach=reach)[:, 0, : self.vocab_size]
