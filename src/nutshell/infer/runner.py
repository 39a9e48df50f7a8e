"""How the next tokens of some sequences are computed: a cache and one method. This one calls the model in torch.

Legend: B sequences in a call, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nutshell.infer.blocks import Chunk
from nutshell.infer.request import Delta, Request
from nutshell.infer.sampling import DamagedModelError, adjusted, log_probabilities, sample
from nutshell.model.kv_cache import KVCache, blocks_of


class Runner(Protocol):
    """Writes tokens into blocks of a KV cache. `native.py` has another one."""

    cache: KVCache

    def take_weights(self) -> None:
        """The model's have changed."""

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """Run B chunks of different sequences, none of which writes a block that another one has. Returns the logits (B, V)
        after the last token of each, valid until the next call, and the likeliest token of each, -1 where a logit is NaN or
        infinite."""


class TorchRunner:
    """Any model on any device: the reference."""

    def __init__(self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, rows, context, self.device, model.compute_dtype, blocks=blocks)

    def take_weights(self) -> None:
        pass  # the model is called itself

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        logits = torch.empty(len(chunks), self.vocab_size, device=self.device)
        for length in {len(chunk.ids) for chunk in chunks}:  # no padding: the single tokens of decoding go together
            group = [place for place, chunk in enumerate(chunks) if len(chunk.ids) == length]
            logits[group] = self._call([chunks[place] for place in group])
        finite = torch.isfinite(logits).all(dim=-1)
        return logits, torch.where(finite, logits.argmax(dim=-1), -1).tolist()

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


def next_tokens(requests: Sequence[Request], logits: Tensor, best: Sequence[int]) -> list[Delta]:
    """Hand each request its next token: of logits (B, V), whose likeliest are `best`, -1 where they are not numbers."""
    failed: dict[int, RuntimeError] = {row: DamagedModelError() for row, token_id in enumerate(best) if token_id < 0}
    choice = logits
    changed = [row for row, request in enumerate(requests) if request.sampling.adjusts]
    if changed:
        choice = logits.clone()
        for row in changed:
            request = requests[row]
            choice[row] = adjusted(logits[row], request.sampling, request.prompt, request.ids)
            if request.grammar is not None:
                try:
                    request.grammar.rule_out(choice[row])
                except RuntimeError as error:
                    failed[row] = error
    chosen = [-1 if row in failed else token_id for row, token_id in enumerate(best)]
    fine = [row for row in range(len(chosen)) if row not in failed]
    drawn = [row for row in fine if requests[row].sampling.temperature > 0 or requests[row].sampling.adjusts]
    if drawn:
        some = choice if len(drawn) == len(chosen) else choice[drawn]
        settings, randoms = [requests[row].sampling for row in drawn], [requests[row].random for row in drawn]
        for row, token_id in zip(drawn, sample(some, settings, randoms).tolist(), strict=True):
            chosen[row] = token_id
    logprobs = _logprobs(requests, logits, chosen)
    deltas: list[Delta] = []
    for row, (request, token_id) in enumerate(zip(requests, chosen, strict=True)):
        if token_id < 0:
            deltas += request.cancel(failed.get(row, DamagedModelError()))
        else:
            deltas += request.accept(token_id, *logprobs.get(row, (None, ())))
    return deltas


def _logprobs(
    requests: Sequence[Request], logits: Tensor, chosen: Sequence[int]
) -> dict[int, tuple[float, list[tuple[int, float]]]]:
    """Log-probabilities of the chosen and the likeliest tokens, for the rows that want them."""
    counts = {
        row: request.sampling.top_logprobs
        for row, request in enumerate(requests)
        if request.sampling.top_logprobs is not None and chosen[row] >= 0
    }
    if not counts:
        return {}
    rows = list(counts)
    own, tops = log_probabilities(
        logits[rows], torch.tensor([chosen[row] for row in rows], device=logits.device), max(counts.values())
    )
    return {row: (logprob, top[: counts[row]]) for row, logprob, top in zip(rows, own, tops, strict=True)}
