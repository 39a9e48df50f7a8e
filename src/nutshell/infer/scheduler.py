"""Continuous batching: many replies grow together, one token each a step. Policy alone: no tensors, no HTTP.

`plan` says which tokens of which request the model sees next, `advance` that it has seen them. Requests are served in order of
arrival. One that finds no block takes those of the youngest, which is computed again later; the oldest always gets what it needs,
since the cache holds at least one whole context: none starves. Everything here belongs to the one thread that steps.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nutshell.infer.blocks import START, BlockPool, Chunk

if TYPE_CHECKING:
    from nutshell.infer.request import Delta, Request

PREFILL_TOKENS = 1024  # a step's share of prompts: bounds its memory
STEP_SECONDS = 0.05  # and, where replies wait for it, its time
LEAST_TOKENS = 128  # fewer are hardly faster
TOOL_WAIT_SECONDS = 0.02  # at a time, so that new requests and cancelled ones are seen

Batch = list[tuple["Request", Chunk]]


def _age(request: Request) -> int:
    return request.number


class Scheduler:
    """Decides which tokens of which request the model sees next."""

    def __init__(self, pool: BlockPool, max_rows: int) -> None:
        self.pool, self.max_rows = pool, max_rows
        self.live: list[Request] = []  # hold blocks; oldest first
        self.queue: list[Request] = []  # hold none; oldest first
        self.preemptions = self.prompt_hits = 0
        """Requests whose blocks were taken from them; tokens of prompts that the cache held already."""
        self.tokens_per_second = 0.0  # of the last long step; unknown at first

    def add(self, request: Request) -> None:
        insort(self.queue, request, key=_age)

    # ---- a step

    def plan(self) -> Batch:
        """One chunk of each live request that has something to feed: the token it sampled last, or a part of a prompt, of a
        tool's result or of what a preempted request said. Its blocks are taken."""
        self._admit()
        batch: Batch = []
        budget, place = self._budget(), 0
        while place < len(self.live):
            request = self.live[place]
            pending = request.pending
            if len(pending) > 1:
                pending = pending[:budget]
                budget -= len(pending)
            if pending and self._make_room(place, len(pending)):
                previous = request.tokens[request.cached - 1] if request.cached else -1
                batch.append((request, Chunk(pending, request.cached, previous, request.blocks)))
            place += 1
        return batch

    def _budget(self) -> int:
        """Tokens of prompts in this step: fewer where somebody reads a reply meanwhile."""
        reading = any(len(request.pending) == 1 for request in self.live)
        in_time = max(LEAST_TOKENS, int(STEP_SECONDS * self.tokens_per_second))
        return min(PREFILL_TOKENS, in_time) if reading else PREFILL_TOKENS

    def advance(self, batch: Batch, seconds: float = 0.0) -> list[int]:
        """The cache holds these chunks now, after so many seconds. Returns the places of requests that have nothing left to feed:
        their next token is wanted."""
        size = self.pool.size
        tokens = sum(len(chunk.ids) for _, chunk in batch)
        if tokens >= LEAST_TOKENS and seconds > 0:
            self.tokens_per_second = tokens / seconds
        for request, chunk in batch:
            request.cached += len(chunk.ids)
            while (end := (request.known + 1) * size) <= request.cached:
                text = request.tokens[end - size : end]
                request.parent = self.pool.remember(request.blocks[request.known], request.parent, text)
                request.known += 1
        return [place for place, (request, _) in enumerate(batch) if not request.pending]

    def take_out_finished(self) -> None:
        for request in self.live:
            if request.finish is not None:
                self._give_up_blocks(request)
        self.live = [request for request in self.live if request.finish is None]

    def cancel(self, requests: Sequence[Request]) -> list[Delta]:
        """End requests, waiting or live, and free what they hold."""
        deltas = [delta for request in requests for delta in request.cancel()]
        self.queue = [request for request in self.queue if request.finish is None]
        self.take_out_finished()
        return deltas

    def abandon(self, error: BaseException) -> None:
        """After a failed step nobody knows what the cache holds, so every request ends with its error."""
        for request in [*self.live, *self.queue]:
            if request.finish is None:
                request.cancel(error)
        self.queue.clear()
        self.take_out_finished()
        self.pool.forget()

    def restart(self) -> None:
        """Compute all that the cache holds again, with other weights."""
        for request in self.live:
            self._give_up_blocks(request)
            self.add(request)
        self.live = []
        self.pool.forget()

    # ---- slow tools

    def hear_tools(self) -> list[Delta]:
        """Let requests go on whose slow tool has answered."""
        deltas = [delta for request in self.live if request.answer is not None for delta in request.resume()]
        self.take_out_finished()
        return deltas

    def wait_for_tools(self) -> None:
        """A moment, where there is nothing else to do."""
        wait([request.answer for request in self.live if request.answer is not None], TOOL_WAIT_SECONDS, FIRST_COMPLETED)

    # ---- blocks

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.pool.size)

    def _admit(self) -> None:
        """Take in who waits, in order, as long as there are rows and blocks; one whose beginning is being read just now by
        another waits for that and lets the next pass."""
        for request in list(self.queue):
            if len(self.live) == self.max_rows:
                return
            blocks, name = self.pool.find(request.tokens[:-1])  # without the last: something must be fed to get logits
            if self._is_being_read(request.tokens, len(blocks)):
                continue
            self.pool.hold(blocks)
            missing = self._blocks_of(len(request.tokens)) - len(blocks)
            if missing > self.pool.available:
                self.pool.give_back(blocks)
                return
            request.blocks = blocks + self.pool.take(missing)
            request.cached, request.known, request.parent = len(blocks) * self.pool.size, len(blocks), name
            self.prompt_hits += request.cached if not request.ids else 0  # a preempted one finds what it computed itself
            self.queue.remove(request)
            insort(self.live, request, key=_age)

    def _is_being_read(self, tokens: Sequence[int], known: int) -> bool:
        """Whether a live request is about to feed the block behind the known ones."""
        end = (known + 1) * self.pool.size
        return end < len(tokens) and any(
            other.cached < end <= len(other.tokens) and other.answer is None and other.tokens[:end] == tokens[:end]
            for other in self.live
        )

    def _make_room(self, place: int, tokens: int) -> bool:
        """Blocks for that many more tokens of the live request at `place`, taken from younger ones where none is left. False
        where it is the youngest itself: it waits."""
        request = self.live[place]
        missing = self._blocks_of(request.cached + tokens) - len(request.blocks)
        self._preempt(missing, place + 1)
        if missing > self.pool.available:
            return False
        request.blocks += self.pool.take(missing)
        return True

    def _preempt(self, missing: int, kept: int) -> None:
        """Send the youngest back to the queue until so many blocks are available, or that many requests are left."""
        while missing > self.pool.available and len(self.live) > kept:
            youngest = self.live.pop()
            self._give_up_blocks(youngest)
            self.add(youngest)
            self.preemptions += 1

    @contextmanager
    def lent_blocks(self, tokens: int) -> Iterator[list[int]]:
        """Blocks for a text that no request is about, between two steps."""
        self._preempt(self._blocks_of(tokens), 0)
        blocks = self.pool.take(self._blocks_of(tokens))
        try:
            yield blocks
        finally:
            self.pool.give_back(blocks)

    def _give_up_blocks(self, request: Request) -> None:
        self.pool.give_back(request.blocks)
        request.blocks, request.cached, request.known, request.parent = [], 0, 0, START
