"""Continuous batching: many replies grow together, one token each a step.

Every live request holds a row of the cache until it ends; `runner.py` computes. Everything here belongs to the one thread that
steps.

Legend: B rows in a call, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from heapq import heappop, heappush

import torch
from torch import Tensor

from nutshell.infer.request import Piece, Request
from nutshell.infer.runner import Runner
from nutshell.infer.sampling import adjusted, log_probabilities, sample

PREFILL_TOKENS = 1024  # a step's share of prompts: bounds its memory and how long live rows wait
MOST_PREFIX_ROWS = 8
TOOL_WAIT_SECONDS = 0.02  # at a time, so that new requests and cancelled ones are seen


def prefix_rows(max_rows: int) -> int:
    """Rows beside those of the replies, for prompts that several share."""
    return 0 if max_rows == 1 else max(1, min(MOST_PREFIX_ROWS, max_rows // 4))


class Prefix:
    """A prompt that several requests share: fed once into a cache row of its own, then copied to each."""

    def __init__(self, prompt: list[int], requests: int) -> None:
        self.prompt = prompt
        self.waiting = requests
        self.row = -1
        self.logits: Tensor | None = None  # (1, V) after the prompt
        self.best = -1  # the likeliest token after it


class Scheduler:
    """Decides which tokens of which request the model sees next."""

    def __init__(self, runner: Runner, max_rows: int) -> None:
        self.runner, self.max_rows = runner, max_rows
        self.live: list[Request] = []
        self.queue: deque[Request] = deque()
        self.free_rows = list(range(max_rows))  # a heap: low rows first, so that the rows in use are neighbours
        self.prefixes: deque[Prefix] = deque()  # not fed yet
        self.prefix_of: dict[Request, Prefix] = {}
        self.prefix_rows = list(range(max_rows, max_rows + prefix_rows(max_rows)))

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
                request.cancel(error)
            self.leave_prefix(request)
        self.queue.clear()
        self.take_out_finished()

    def step(self) -> list[Piece]:
        """Admit, feed a share of the prompts and one token of every other row, sample, take out what ended."""
        pieces = self.hear_tools()
        self.feed_prefixes()
        self.admit(pieces)
        self.advance(pieces)
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

    def admit(self, pieces: list[Piece]) -> None:
        """Give free rows to the queue, in order; a request whose shared prompt is not fed yet holds up the rest."""
        copies: dict[Prefix, list[Request]] = {}
        while self.queue and self.free_rows:
            prefix = self.prefix_of.get(self.queue[0])
            if prefix is not None and prefix.logits is None:
                break
            request = self.queue.popleft()
            request.row = heappop(self.free_rows)
            self.live.append(request)
            self.runner.reset(request.row)
            if prefix is not None:
                request.pending = []
                copies.setdefault(prefix, []).append(request)
        for prefix, requests in copies.items():
            self.runner.copy(prefix.row, [request.row for request in requests])
            assert prefix.logits is not None
            self.choose(requests, prefix.logits.expand(len(requests), -1), [prefix.best] * len(requests), pieces)
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
        for request in self.live:
            if request.finish is not None:
                heappush(self.free_rows, request.row)
        self.live = [request for request in self.live if request.finish is None]

    # ---- the model

    def feed_prefixes(self) -> None:
        while self.prefixes and self.prefix_rows:
            prefix = self.prefixes.popleft()
            prefix.row = self.prefix_rows.pop()
            self.runner.reset(prefix.row)
            for start in range(0, len(prefix.prompt), PREFILL_TOKENS):
                logits, (prefix.best,) = self.runner.forward([prefix.row], [prefix.prompt[start : start + PREFILL_TOKENS]])
            prefix.logits = logits.clone()

    def advance(self, pieces: list[Piece]) -> None:
        """One call for all rows: the token that a row sampled last, or a part of a prompt or of a tool's result, oldest request
        first, of at most PREFILL_TOKENS in all."""
        budget = PREFILL_TOKENS
        requests: list[Request] = []
        tokens: list[list[int]] = []
        for request in self.live:  # in order of arrival
            pending = request.pending
            if len(pending) > 1:
                pending = pending[:budget]
                budget -= len(pending)
            if pending:
                requests.append(request)
                tokens.append(pending)
        if not requests:
            return
        logits, best = self.runner.forward([request.row for request in requests], tokens)
        for request, fed in zip(requests, tokens, strict=True):
            request.pending = request.pending[len(fed) :]
        ready = [index for index, request in enumerate(requests) if not request.pending]
        if len(ready) < len(requests):
            requests, logits, best = [requests[i] for i in ready], logits[ready], [best[i] for i in ready]
        self.choose(requests, logits, best, pieces)

    def choose(self, requests: Sequence[Request], logits: Tensor, best: Sequence[int], pieces: list[Piece]) -> None:
        """Hand each request its next token: of logits (B, V), whose likeliest are `best`, -1 where they are not numbers."""
        chosen, choice = list(best), logits
        changed = [row for row, request in enumerate(requests) if request.sampling.adjusts]
        if changed:
            choice = logits.clone()
            for row in changed:
                choice[row] = adjusted(logits[row], requests[row].sampling, requests[row].prompt, requests[row].ids)
        fine = [row for row in range(len(chosen)) if best[row] >= 0]
        drawn = [row for row in fine if requests[row].sampling.temperature > 0 or requests[row].sampling.adjusts]
        if drawn:
            some = choice if len(drawn) == len(chosen) else choice[drawn]
            settings, randoms = [requests[row].sampling for row in drawn], [requests[row].random for row in drawn]
            for row, token_id in zip(drawn, sample(some, settings, randoms).tolist(), strict=True):
                chosen[row] = token_id
        report = self.report(requests, logits, chosen)
        for row, (request, token_id) in enumerate(zip(requests, chosen, strict=True)):
            if token_id < 0:
                pieces += request.cancel(
                    RuntimeError("the model's output is NaN or infinite: its weights are damaged, or its training diverged.")
                )
            else:
                pieces += request.accept(token_id, *report.get(row, (None, ())))

    def report(
        self, requests: Sequence[Request], logits: Tensor, chosen: Sequence[int]
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
