"""How the next tokens of some sequences are computed: a cache and one method. `native.py` and `torch_runner.py` are two ways.

Legend: B sequences in a call, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from nutshell.infer.blocks import Chunk
from nutshell.infer.request import Delta, Request
from nutshell.infer.sampling import DamagedModelError, Logits, adjusted, draw, log_probabilities

LOGITS_AT_ONCE = 1 << 22
"""Of a prompt that is scored."""


class Cache(Protocol):
    """The memory that a runner writes keys and values into."""

    def touch(self) -> None:
        """Write all of it: memory that an operating system only promised is missed now."""


class Runner(Protocol):
    """Writes tokens into blocks of a KV cache."""

    @property
    def cache(self) -> Cache: ...

    def take_weights(self) -> None:
        """The model's have changed."""

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Any, list[int]]:
        """Run B chunks of different sequences, none of which writes a block that another one has. Returns the logits (B, V)
        after the last token of each, valid until the next call, and the token that each says is next, -1 where a logit is NaN or
        infinite. On CPU the logits are an array, on an accelerator a tensor there."""

    def prompt_logits(self, ids: Sequence[int], blocks: Sequence[int]) -> Iterator[Logits]:
        """Logits (some, V) after each token of a text, in order, each valid until the next. `blocks`, which nobody else has, may
        be written."""


def with_draws(batch: Sequence[tuple[Request, Chunk]]) -> list[Chunk]:
    """The chunks of requests, each with how its next token is drawn, where one is wanted and no other logits are drawn from."""
    return [
        chunk if request.sampling.adjusts or len(chunk.ids) < len(request.pending)
        else chunk._replace(draw=request.sampling.draw(request.random))
        for request, chunk in batch
    ]  # fmt: skip


def next_tokens(requests: Sequence[Request], logits: Any, tokens: Sequence[int]) -> list[Delta]:
    """Hand each request its next token: one of `tokens`, or where it wants its logits adjusted, of its row of `logits` (B, V).
    -1 stands for logits that are not numbers."""
    failed: dict[int, RuntimeError] = {row: DamagedModelError() for row, token_id in enumerate(tokens) if token_id < 0}
    chosen = list(tokens)
    for row, request in enumerate(requests):
        if row in failed or not request.sampling.adjusts:
            continue
        choice = adjusted(_on_cpu(logits, [row])[0], request.sampling, request.prompt, request.ids)
        if request.grammar is not None:
            try:
                request.grammar.rule_out(choice)
            except RuntimeError as error:
                failed[row], chosen[row] = error, -1
                continue
        how = request.sampling.draw(request.random)
        chosen[row] = int(choice.argmax()) if how is None else draw(choice[None], [how])[0]
    logprobs = _logprobs(requests, logits, chosen)
    deltas: list[Delta] = []
    for row, (request, token_id) in enumerate(zip(requests, chosen, strict=True)):
        if token_id < 0:
            deltas += request.cancel(failed.get(row, DamagedModelError()))
        else:
            deltas += request.accept(token_id, *logprobs.get(row, (None, ())))
    return deltas


def _on_cpu(logits: Any, rows: list[int]) -> Logits:
    some = logits[rows]
    return some if isinstance(some, np.ndarray) else some.cpu().numpy()


def _logprobs(
    requests: Sequence[Request], logits: Any, chosen: Sequence[int]
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
    own, tops = log_probabilities(_on_cpu(logits, rows), [chosen[row] for row in rows], max(counts.values()))
    return {row: (logprob, top[: counts[row]]) for row, logprob, top in zip(rows, own, tops, strict=True)}
