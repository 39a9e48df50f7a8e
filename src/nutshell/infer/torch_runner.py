"""The `Runner` of any model on any device: it calls the model in torch.

Legend: B sequences in a call, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nutshell.infer.blocks import Chunk
from nutshell.infer.sampling import Logits
from nutshell.model.kv_blocks import blocks_of
from nutshell.model.kv_cache import KVCache

LOGITS_AT_ONCE = 1 << 22


class TorchRunner:
    """The reference."""

    def __init__(self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, rows, context, self.device, model.compute_dtype, blocks=blocks)

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
        cache, rows = self.cache, torch.arange(len(chunks), device=self.device)
        used = [list(chunk.blocks[: blocks_of(chunk.start + len(chunk.ids))]) for chunk in chunks]
        fresh = [block for chunk, blocks in zip(chunks, used, strict=True) for block in blocks[blocks_of(chunk.start) :]]
        cache.clear(torch.tensor(fresh, dtype=torch.long, device=self.device))
        most = max(map(len, used))
        padded = [blocks + blocks[-1:] * (most - len(blocks)) for blocks in used]  # what lies behind is masked
        cache.tables[: len(chunks), :most] = torch.tensor(padded, device=self.device)
        cache.lengths[: len(chunks)] = torch.tensor([chunk.start for chunk in chunks], device=self.device)
        cache.previous[: len(chunks)] = torch.tensor([chunk.previous for chunk in chunks], device=self.device)
        ids = torch.tensor([list(chunk.ids) for chunk in chunks], device=self.device)  # (B, T)
        return self.model.decode(ids, cache, rows, last_only=True)[:, 0, : self.vocab_size]
