"""Continuous batching: many replies grow together, one token each a step.

Live requests occupy the cache rows 0..n-1 without holes, so that the model reads the cache in place: a row that ends
leaves at once, and the last row moves into its hole. Everything here belongs to the one thread that steps.

Legend: B rows in a call, T tokens per row in it, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import torch
from torch import Tensor

from nutshell.infer.request import Piece, Request
from nutshell.infer.sampling import log_probabilities, sample
from nutshell.model.kv_cache import KVCache

PREFILL_TOKENS = 1024  # a step's share of prompts: bounds its memory (T * V logits) and how long live rows wait
MOST_PREFIX_ROWS = 8
TOOL_WAIT_SECONDS = 0.02  # at a time, so that new requests and cancelled ones are seen

Ready = list[tuple[list[Request], Tensor]]
"""Requests with the logits (B, V) of their next token."""


class Prefix:
    """A prompt that several requests share: fed once into a cache row of its own, then copied to each."""

    def __init__(self, prompt: list[int], requests: int) -> None:
        self.prompt = prompt
        self.waiting = requests
        self.row = -1
        self.logits: Tensor | None = None  # (1, V) after the prompt


class Scheduler:
    """Decides which tokens of which request the model sees next."""

    def __init__(self, model: Any, vocab_size: int, max_rows: int, context: int) -> None:
        self.model, self.vocab_size, self.max_rows = model, vocab_size, max_rows
        spare = 0 if max_rows == 1 else max(1, min(MOST_PREFIX_ROWS, max_rows // 4))
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, max_rows + spare, context, self.device, model.compute_dtype)
        self.rows = torch.arange(max_rows + spare, device=self.device)
        self.live: list[Request] = []  # index = cache row
        self.queue: deque[Request] = deque()
        self.prefixes: deque[Prefix] = deque()  # not fed yet
        self.prefix_of: dict[Request, Prefix] = {}
        self.prefix_rows = list(range(max_rows, max_rows + spare))

    def add(self, request: Request, prefix: Prefix | None) -> None:
        self.queue.append(request)
        if prefix is not None:
            self.prefix_of[request] = prefix
            if not self.prefixes or self.prefixes[-1] is not prefix:
                self.prefixes.append(prefix)

    def cancel(self, requests: list[Request]) -> list[Piece]:
        """End requests, waiting or live, and free what they hold."""
        pieces: list[Piece] = []
        for request in requests:
            pieces += request.cancel()
            self.leave_prefix(request)
        self.queue = deque(request for request in self.queue if request.finish is None)
        self.take_out_finished()
        return pieces

    def abandon(self, error: BaseException) -> None:
        """After a failed step nobody knows what the cache holds, so every request ends with its error."""
        for request in [*self.live, *self.queue]:
            if request.finish is None:
                request.cancel()
                request.error = error
            self.leave_prefix(request)
        self.live.clear()
        self.queue.clear()

    def step(self) -> list[Piece]:
        """Admit, feed a share of the prompts, decode one token for every other row, sample, take out what ended."""
        pieces = self.hear_tools()
        ready: Ready = []
        self.feed_prefixes()
        self.admit(ready)
        self.prefill(ready)
        self.decode(ready)
        for requests, logits in ready:
            self.choose(requests, logits, pieces)
        self.take_out_finished()
        return pieces

    def hear_tools(self) -> list[Piece]:
        """Let rows go on whose slow tool has answered; wait a moment where every row waits for one."""
        answers = [request.answer for request in self.live if request.answer is not None]
        if answers and len(answers) == len(self.live) and (not self.queue or len(self.live) == self.max_rows):
            wait(answers, TOOL_WAIT_SECONDS, FIRST_COMPLETED)
        pieces = [piece for request in self.live if answers for piece in request.resume()]
        self.take_out_finished()
        return pieces

    # ---- rows

    def admit(self, ready: Ready) -> None:
        """Give free rows to the queue, in order; a request whose shared prompt is not fed yet holds up the rest."""
        copies: dict[Prefix, list[Request]] = {}
        while self.queue and len(self.live) < self.max_rows:
            prefix = self.prefix_of.get(self.queue[0])
            if prefix is not None and prefix.logits is None:
                break
            request = self.queue.popleft()
            request.row = len(self.live)
            self.live.append(request)
            self.cache.reset(request.row)
            if prefix is not None:
                request.pending = []
                copies.setdefault(prefix, []).append(request)
        for prefix, requests in copies.items():
            self.cache.copy(prefix.row, self.rows[requests[0].row : requests[-1].row + 1])
            assert prefix.logits is not None
            ready.append((requests, prefix.logits.expand(len(requests), -1)))
            for request in requests:
                self.leave_prefix(request)

    def leave_prefix(self, request: Request) -> None:
        prefix = self.prefix_of.pop(request, None)
        if prefix is None:
            return
        prefix.waiting -= 1
        if prefix.waiting > 0:
            return
        if prefix.row >= 0:
            self.prefix_rows.append(prefix.row)
        else:
            self.prefixes.remove(prefix)

    def take_out_finished(self) -> None:
        live = self.live
        for row in range(len(live) - 1, -1, -1):
            if live[row].finish is None:
                continue
            last = live.pop()
            if row < len(live):
                self.cache.copy(last.row, self.rows[row : row + 1])
                live[row], last.row = last, row

    # ---- the model

    def forward(self, tokens: list[list[int]], rows: Tensor) -> Tensor:
        """Append tokens (B lists, some perhaps empty) to cache rows (B,); logits (B, V) after the last of each."""
        counts = [len(row) for row in tokens]
        T = max(counts)
        ids = torch.tensor([row + [0] * (T - len(row)) for row in tokens], device=self.device)
        count = torch.tensor(counts, device=self.device)
        logits = self.model.decode(ids, self.cache, rows, count if min(counts) < T else None, last_only=True)  # (B, 1, V)
        return logits[:, 0, : self.vocab_size]

    def feed_prefixes(self) -> None:
        while self.prefixes and self.prefix_rows:
            prefix = self.prefixes.popleft()
            prefix.row = self.prefix_rows.pop()
            self.cache.reset(prefix.row)
            row = self.rows[prefix.row : prefix.row + 1]
            for start in range(0, len(prefix.prompt), PREFILL_TOKENS):
                prefix.logits = self.forward([prefix.prompt[start : start + PREFILL_TOKENS]], row).clone()

    def prefill(self, ready: Ready) -> None:
        """Feed prompts and tool results, oldest request first, up to PREFILL_TOKENS; similar lengths share a call."""
        budget = PREFILL_TOKENS
        chosen: list[tuple[int, Request]] = []
        for request in sorted((r for r in self.live if len(r.pending) > 1), key=lambda r: r.number):
            take = min(len(request.pending), budget)
            if take:
                chosen.append((take, request))
            budget -= take
        for group in group_by_length(chosen):
            rows = self.rows[[request.row for _, request in group]]
            logits = self.forward([request.pending[:take] for take, request in group], rows)
            for take, request in group:
                request.pending = request.pending[take:]
            done = [index for index, (_, request) in enumerate(group) if not request.pending]
            if done:
                ready.append(([group[index][1] for index in done], logits[done]))

    def decode(self, ready: Ready) -> None:
        """One token for each row that has exactly one pending; the others ride along with none, to keep rows 0..n-1."""
        decoding = [request for request in self.live if len(request.pending) == 1]
        if not decoding:
            return
        tokens = [request.pending if len(request.pending) == 1 else [] for request in self.live]
        logits = self.forward(tokens, self.rows[: len(tokens)])
        if len(decoding) < len(tokens):
            logits = logits[[request.row for request in decoding]]
        for request in decoding:
            request.pending = []
        ready.append((decoding, logits))

    def choose(self, requests: list[Request], logits: Tensor, pieces: list[Piece]) -> None:
        """Sample the next token of each request from logits (B, V) and hand it over."""
        if not bool(torch.isfinite(logits).all()):
            raise RuntimeError("the model's output is NaN or infinite: its weights are damaged, or its training diverged.")
        settings = [request.sampling for request in requests]
        chosen = sample(logits, settings, [request.random for request in requests])
        wanted = [row for row, setting in enumerate(settings) if setting.top_logprobs is not None]
        report: dict[int, tuple[float, list[tuple[int, float]]]] = {}
        if wanted:
            counts = [settings[row].top_logprobs or 0 for row in wanted]
            own, tops = log_probabilities(logits[wanted], chosen[wanted], max(counts))
            for row, logprob, top, count in zip(wanted, own, tops, counts, strict=True):
                report[row] = (logprob, top[:count])
        for row, (request, token_id) in enumerate(zip(requests, chosen.tolist(), strict=True)):
            logprob_and_top = report.get(row, (None, ()))
            pieces += request.accept(token_id, *logprob_and_top)


def group_by_length(chosen: list[tuple[int, Request]]) -> list[list[tuple[int, Request]]]:
    """Split into calls in which at least half of the right-padded area is real tokens."""
    groups: list[list[tuple[int, Request]]] = []
    real = 0
    for take, request in sorted(chosen, key=lambda pair: -pair[0]):
        if groups and 2 * (real + take) >= groups[-1][0][0] * (len(groups[-1]) + 1):
            groups[-1].append((take, request))
            real += take
        else:
            groups.append([(take, request)])
            real = take
    return groups
