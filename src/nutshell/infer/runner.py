"""How the next tokens of some rows are computed: a cache and one method. This one calls the model in torch.

Legend: B sequences in a call, T tokens per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nutshell.model.kv_cache import KVCache


class Runner(Protocol):
    """Appends tokens to rows of a KV cache. `native.py` has another one."""

    def reset(self, row: int) -> None:
        """Forget a row."""

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Give rows the state of row `source`."""

    def forward(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Append at least one token to each of B different rows. Returns the logits (B, V) after the last token of each, valid
        until the next call, and the likeliest token of each, -1 where a logit is NaN or infinite."""


class TorchRunner:
    """Any model on any device: the reference."""

    def __init__(self, model: Any, vocab_size: int, rows: int, context: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, rows, context, self.device, model.compute_dtype)

    def reset(self, row: int) -> None:
        self.cache.reset(row)

    def copy(self, source: int, targets: Sequence[int]) -> None:
        self.cache.copy(source, torch.tensor(targets, device=self.device))

    def forward(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        logits = torch.empty(len(rows), self.vocab_size, device=self.device)
        for group in calls([len(ids) for ids in tokens]):
            logits[group] = self.call({rows[i]: tokens[i] for i in group})
        finite = torch.isfinite(logits).all(dim=-1)
        return logits, torch.where(finite, logits.argmax(dim=-1), -1).tolist()

    def call(self, tokens: dict[int, Sequence[int]]) -> Tensor:
        """One padded call of the model: logits (B, V) of these rows."""
        rows, longest = list(tokens), max(map(len, tokens.values()))
        if longest == 1:  # rows between these ride along with no token: the model reads neighbouring rows in place
            rows = list(range(min(rows), max(rows) + 1))
        counts = [len(tokens.get(row, ())) for row in rows]
        ids = [[*tokens.get(row, ()), *[0] * (longest - count)] for row, count in zip(rows, counts, strict=True)]
        index = torch.tensor(rows, device=self.device)
        real = torch.tensor(counts, device=self.device) if min(counts) < longest else None
        logits = self.model.decode(torch.tensor(ids, device=self.device), self.cache, index, real, last_only=True)
        logits = logits[:, 0, : self.vocab_size]
        return logits if rows == list(tokens) else logits[[row - rows[0] for row in tokens]]


def calls(lengths: Sequence[int]) -> list[list[int]]:
    """Split sequences into padded calls: single tokens together, and others so that at least half of a call is real tokens."""
    groups: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest == 1 or lengths[index] > 1) and 2 * (real + lengths[index]) >= longest * (len(groups[-1]) + 1):
            groups[-1].append(index)
            real += lengths[index]
        else:
            groups.append([index])
            real = lengths[index]
    return groups
