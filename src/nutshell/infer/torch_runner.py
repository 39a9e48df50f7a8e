"""The `Runner` of any model on any device: it calls the model in torch.

Legend: B sequences in a call, T tokens of each, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nutshell.infer.blocks import Chunk
from nutshell.infer.cuda_graphs import DecodeGraphs
from nutshell.infer.runner import LOGITS_AT_ONCE
from nutshell.infer.sampling import Logits
from nutshell.infer.torch_sampling import GREEDY, candidates_of, draw_in_torch
from nutshell.model.kv_blocks import blocks_of
from nutshell.model.kv_cache import KVCache
from nutshell.model.probe import why_not_paged

FIXED = 2
"""Columns of a table of sequences before the blocks: tokens in the cache, and the token before the first new one."""


class TorchRunner:
    """The reference. With `kernels`, on CUDA, attention reads the cache where it lies, and the steps of decoding are recorded."""

    def __init__(
        self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None, *, kernels: bool = False
    ) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.device = next(model.parameters()).device
        self.columns = blocks_of(context)
        self.cache = KVCache(model.config, blocks or rows * self.columns, self.device, model.compute_dtype)
        self.graphs: DecodeGraphs | None = None
        if kernels and self.device.type == "cuda":
            reason = why_not_paged(model.config, self.device, model.compute_dtype)
            if reason:
                print(
                    f"Attention over a paged cache does not run here ({reason}); decoding goes on with copies, and without "
                    "CUDA graphs.", file=sys.stderr,
                )  # fmt: skip
            else:
                self.cache.paged, self.graphs = True, DecodeGraphs(self._decode, rows, self.device)

    def take_weights(self) -> None:
        pass  # the model is called itself

    @torch.no_grad()
    def forward(self, chunks: Sequence[Chunk]) -> tuple[Any, list[int]]:
        lengths = [len(chunk.ids) for chunk in chunks]
        groups = [  # no padding: the single tokens of decoding go together
            [row for row, length in enumerate(lengths) if length == wanted] for wanted in dict.fromkeys(lengths)
        ]
        results = [self._call([chunks[row] for row in group]) for group in groups]
        logits, tokens = results[0]
        if len(groups) > 1:
            place = torch.tensor([row for group in groups for row in group]).argsort().to(self.device)
            logits, tokens = (torch.cat(parts)[place] for parts in zip(*results, strict=True))
        return (logits.numpy() if logits.device.type == "cpu" else logits), tokens.tolist()

    @torch.no_grad()
    def prompt_logits(self, ids: Sequence[int], blocks: Sequence[int]) -> Iterator[Logits]:
        """One whole row, without the cache."""
        row = torch.tensor([list(ids)], device=self.device)
        hidden = self.model.hidden_states(row, self.model.rows_context(row))[0]  # (T, C)
        for some in hidden.split(max(1, LOGITS_AT_ONCE // self.vocab_size)):
            yield self.model.head(some)[:, : self.vocab_size].cpu().numpy()

    def _call(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and next tokens (B,) of chunks of one length."""
        used = [list(chunk.blocks[: blocks_of(chunk.start + len(chunk.ids))]) for chunk in chunks]
        if not self.cache.paged:
            fresh = [block for chunk, blocks in zip(chunks, used, strict=True) for block in blocks[blocks_of(chunk.start) :]]
            self.cache.clear(torch.tensor(fresh, dtype=torch.long, device=self.device))
        tokens = len(chunks[0].ids)
        graphs = self.graphs if tokens == 1 else None
        columns, head = self.columns if graphs else max(map(len, used)), tokens + FIXED
        numbers = np.empty((len(chunks), head + columns), np.int64)
        for row, chunk, blocks in zip(numbers, chunks, used, strict=True):
            row[:head] = [*chunk.ids, chunk.start, chunk.previous]
            row[head : head + len(blocks)] = blocks
            row[head + len(blocks) :] = blocks[-1]  # not looked at, or masked
        table = torch.from_numpy(numbers)
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        draws = torch.tensor([chunk.draw or GREEDY for chunk in chunks], dtype=exact)
        candidates = candidates_of([chunk.draw for chunk in chunks], self.vocab_size)
        if graphs:
            return graphs(table, draws, candidates)
        return self._decode(table.to(self.device), draws.to(self.device), candidates, tokens)

    def _decode(self, table: Tensor, draws: Tensor, candidates: int | None, tokens: int = 1) -> tuple[Tensor, Tensor]:
        """Logits (B, V) and next tokens (B,). A row of the table for each sequence: its new tokens, how many the cache holds, the
        token before, its blocks. How tokens are drawn: see `draw_in_torch`."""
        ids, start, previous, blocks = table.split([tokens, 1, 1, table.size(1) - tokens - FIXED], dim=1)
        places = blocks, start.squeeze(1), previous.squeeze(1)
        logits = self.model.decode(ids, self.cache, *places, last_only=True)[:, 0, : self.vocab_size]
        return logits, draw_in_torch(logits, draws, candidates)
