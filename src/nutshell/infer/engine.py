"""The engine: replies of one model to many requests at once. It knows nothing of HTTP."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from nutshell.infer.blocks import BlockPool
from nutshell.infer.cache_memory import cache_blocks
from nutshell.infer.calculator import calculate
from nutshell.infer.conversation import fit_conversation
from nutshell.infer.native import NativeRunner, describe, dtype_of, why_not
from nutshell.infer.request import Completion, Delta, Request, Vocabulary
from nutshell.infer.runner import Runner, next_tokens, with_draws
from nutshell.infer.sampling import Sampling
from nutshell.infer.scheduler import Scheduler
from nutshell.infer.tools import Tool
from nutshell.model.kv_blocks import BLOCK

ENGINES = ("auto", "native", "native-int8", "torch")
"""What computes: native code on CPU, with weights in the model's dtype or in int8, or torch. auto: native where it can, else
torch, with kernels of ours and CUDA graphs where there is CUDA."""


class CacheStats(NamedTuple):
    """The KV cache in numbers."""

    blocks: int = 0
    used: int = 0
    """Blocks that a request holds; the rest are free or may be taken."""
    prompt_hits: int = 0
    """Tokens of prompts that were found in the cache and not computed again."""
    preemptions: int = 0
    """How often a request gave its blocks to an older one, to be computed again."""


class Engine:
    """Generates replies of `model` for many requests at once.

    `submit`, `cancel` and `busy` may be used from any thread, also while another one is in `step`. `chat`, `generate`
    and `sample` step by themselves; deltas of submitted requests that appear meanwhile come out of the next `step()`.

    >>> engine = Engine(model, tok)                                                     # doctest: +SKIP
    >>> for delta in engine.chat([{"role": "user", "content": "Hi"}], temperature=0):   # doctest: +SKIP
    ...     print(delta.text, end="")
    """

    def __init__(
        self,
        model: Any,
        tok: Any,
        max_rows: int = 16,
        *,
        context: int | None = None,
        engine: str = "auto",
        kv_cache_bytes: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; accepted: 1 or more rows that are decoded together.")
        if context is not None and not 2 <= context <= model.config.context:
            raise ValueError(f"context is {context}; accepted: 2 to {model.config.context}, which the model was made for.")
        if tok.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tok.vocab_size} tokens and the model {model.config.vocab_size}; accepted: a "
                "tokenizer that fits the model's weights. Load both from the same folder."
            )
        if engine not in ENGINES:
            raise ValueError(f"engine is {engine!r}; accepted: {', '.join(ENGINES)}.")
        reason = why_not(model)
        if engine.startswith("native") and reason:
            raise ValueError(f"engine is {engine!r}, but native decoding does not work here: {reason}. Accepted: auto, torch.")
        self.model, self.tok, self.max_rows = model, tok, max_rows
        self._native, self._int8, self._kernels = engine != "torch" and reason is None, engine == "native-int8", engine == "auto"
        self.computes = describe(model, self._int8) if self._native else f"torch ({dtype_of(model)})"
        """What computes, for people."""
        self.kv_cache_bytes = kv_cache_bytes
        """Most memory of the KV cache; None: what `max_rows` whole contexts need, at most a quarter of what is free."""
        self.context = context or model.config.context
        """Longest prompt and reply together, in tokens."""
        self.tool: Tool | None = calculate
        """What runs what the model writes between its tool tokens. Set it before the first request."""
        self._vocabulary = Vocabulary.of(tok)
        self._scheduler: Scheduler | None = None  # both are made by the first step, with the cache
        self._runner: Runner
        self._numbers = itertools.count()
        self._parked: deque[Delta] = deque()  # of requests without an inbox, until `step` returns them
        self._inboxes: dict[Request, deque[Delta]] = {}
        self._stepping = threading.RLock()
        self._lock = threading.Lock()  # of the two lists below, never held for long
        self._submitted: list[Request] = []
        self._cancelled: list[Request] = []

    # ---- any thread

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling | None = None, tools: bool = True) -> Request:
        """Queue a prompt. ValueError where it is empty, names an unknown token or leaves no room for a reply."""
        return self.submit_choices(prompt_ids, [sampling or Sampling()], tools)[0]

    def submit_choices(self, prompt_ids: Sequence[int], samplings: Sequence[Sampling], tools: bool = True) -> list[Request]:
        """Queue one prompt for several replies; its whole blocks are fed once."""
        requests = [self._request(prompt_ids, sampling, tools) for sampling in samplings]
        self._enqueue(requests)
        return requests

    def cancel(self, request: Request) -> None:
        """End a request; its blocks are free before the next step decodes. Nothing happens if it has ended already."""
        with self._lock:
            if request.finish is None and not request.cancelled:
                request.cancelled = True
                self._cancelled.append(request)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        scheduler = self._scheduler
        return bool(self._submitted or self._parked or (scheduler and (scheduler.live or scheduler.queue)))

    def cache_stats(self) -> CacheStats:
        """Counts of the KV cache, all 0 before the first step made it."""
        scheduler = self._scheduler
        if scheduler is None:
            return CacheStats()
        pool = scheduler.pool
        return CacheStats(pool.total, pool.total - pool.available, scheduler.prompt_hits, scheduler.preemptions)

    def _request(self, prompt: Sequence[int], sampling: Sampling, tools: bool, **options: Any) -> Request:
        ids = self._documents(prompt, reply=1)[-1]
        limit, number = min(self.context - len(prompt), sampling.max_tokens), next(self._numbers)
        tools = tools and self.tool is not None and sampling.grammar is None
        return Request(self._vocabulary, ids, sampling, limit, number, tools, self.tool or calculate, **options)

    def _documents(self, prompt: Sequence[int], reply: int = 0) -> list[list[int]]:
        """A prompt that leaves room for `reply` tokens, cut before each <|bos|>: as in training, a document sees itself alone."""
        ids = list(prompt)
        if not ids:
            raise ValueError("the prompt has no tokens; accepted: at least one, for example <|bos|>.")
        if len(ids) + reply > self.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; accepted: at most {self.context - reply}, as the context holds "
                f"{self.context}{' with the reply' * reply}. Shorten the prompt."
            )
        if min(ids) < 0 or max(ids) >= self.tok.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.tok.vocab_size)
            raise ValueError(f"the prompt has the token {wrong}; accepted: 0 to {self.tok.vocab_size - 1}.")
        starts = [0]
        with suppress(ValueError):  # there is no other
            while True:
                starts.append(ids.index(self.model.config.bos_id, starts[-1] + 1))
        return [ids[start:end] for start, end in itertools.pairwise([*starts, len(ids)])]

    def _enqueue(self, requests: list[Request]) -> None:
        with self._lock:
            self._submitted += requests

    # ---- the thread that steps

    def step(self) -> list[Delta]:
        """Advance every live request by one token; returns what became readable, in no order between requests."""
        with self._stepping:
            self._advance()
            deltas, self._parked = self._parked, deque()
            return list(deltas)

    def allocate(self, *, touch: bool = False) -> Scheduler:
        """The scheduler with its cache, made now where no step has made it yet. MemoryError says how much was asked for. With
        `touch` every byte is written once: then the memory is there, and not just promised."""
        if self._scheduler is None:
            blocks, size = cache_blocks(self.model, self.context, self.max_rows, self.kv_cache_bytes)
            try:
                self._runner = self._make_runner()(self.model, self.tok.vocab_size, self.max_rows, self.context, blocks)
                if touch:
                    self._runner.cache.touch()
            except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError on CPU, OutOfMemoryError on CUDA
                raise MemoryError(
                    f"no memory for the KV cache: about {size / 2**30:.1f} GB for {self.max_rows} replies of {self.context} "
                    f"tokens ({error})."
                ) from error
            self._scheduler = Scheduler(BlockPool(blocks, BLOCK), self.max_rows)
        return self._scheduler

    def _make_runner(self) -> Callable[..., Runner]:
        if self._native:
            return partial(NativeRunner, int8=self._int8)
        from nutshell.infer.torch_runner import TorchRunner

        return partial(TorchRunner, kernels=self._kernels)

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Any]:
        """Logits (some, V) after each token of a text of at most `context`, in order, each valid until the next."""
        documents = self._documents(ids)
        with self._stepping, self.allocate().lent_blocks(len(ids)) as blocks:
            for document in documents:
                yield from self._runner.prompt_logits(document, blocks)

    def weights_changed(self) -> None:
        """Call this after changing the model: replies go on with the new weights alone, what the old ones computed is dropped."""
        with self._stepping:
            if self._scheduler is not None:
                self._runner.take_weights()
                self._scheduler.restart()

    def _take_in(self) -> list[Delta]:
        """Hand what was submitted and cancelled meanwhile to the scheduler."""
        scheduler = self.allocate()
        with self._lock:
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        for request in submitted:
            scheduler.add(request)
        return scheduler.cancel([request for request in cancelled if request.finish is None])

    def _compute(self) -> list[Delta]:
        """What the scheduler plans, through the model; each request that has nothing left to feed gets its next token."""
        scheduler = self.allocate()
        deltas = scheduler.hear_tools()
        batch = scheduler.plan()
        if not batch:
            scheduler.wait_for_tools()
            return deltas
        began = time.perf_counter()
        logits, tokens = self._runner.forward(with_draws(batch))
        ready = scheduler.advance(batch, time.perf_counter() - began)
        if min(tokens) < 0:  # not a number: nobody shall read on from that
            scheduler.pool.forget()
        if len(ready) < len(batch):
            logits, tokens = logits[ready], [tokens[place] for place in ready]
        deltas += self._choose([batch[place][0] for place in ready], logits, tokens)
        scheduler.take_out_finished()
        return deltas

    def _choose(self, requests: list[Request], logits: Any, tokens: list[int]) -> list[Delta]:
        return next_tokens(requests, logits, tokens)

    def _advance(self) -> None:
        """One step."""
        try:
            self._deliver(self._take_in())
            self._deliver(self._compute())
        except BaseException as error:
            with self._lock:
                lost, self._submitted, self._cancelled = self._submitted, [], []
            for request in lost:  # where there was no memory for the cache
                request.cancel(error)
            if self._scheduler is not None:
                self._scheduler.abandon(error)
            raise

    def _deliver(self, deltas: list[Delta]) -> None:
        """To the inbox of their request; those of requests without one wait for `step` to return them."""
        for delta in deltas:
            self._inboxes.get(delta.request, self._parked).append(delta)

    # ---- whole replies

    def chat(self, messages: list[dict[str, Any]], *, tools: bool = True, **sampling: Any) -> Iterator[Delta]:
        """The assistant's reply to a conversation, delta by delta; `sampling` are the fields of Sampling.

        A conversation longer than the context loses its oldest turns: `delta.request.dropped` says how many messages,
        `delta.request.truncated` whether the last one was cut too. Closing the iterator cancels the reply.
        """
        settings = Sampling(**sampling)
        fitted = fit_conversation(messages, self.tok, self.context, settings.max_tokens)
        request = self._request(fitted.ids, settings, tools, dropped=fitted.dropped, truncated=fitted.truncated)
        return self._follow(request)

    def _follow(self, request: Request) -> Iterator[Delta]:
        inbox = self._inboxes[request] = deque()
        self._enqueue([request])
        ended = finished = False
        try:
            while not ended:
                with self._stepping:  # between two steps, also of other threads: all deltas of this reply are in its inbox
                    if not inbox and request.finish is None:
                        self._advance()
                    ended = request.finish is not None
                while inbox:
                    delta = inbox.popleft()
                    finished = delta.finish is not None
                    yield delta
            if request.error or not finished:
                reason = request.error or "a step of the engine failed."
                raise RuntimeError(f"this reply could not be finished: {reason}") from request.error
        finally:
            self._withdraw([request])
            del self._inboxes[request]

    def _withdraw(self, requests: list[Request]) -> None:
        """Cancel what has not ended, and free its blocks at once: nobody may step afterwards."""
        if any(request.finish is None for request in requests):
            for request in requests:
                self.cancel(request)
            with self._stepping:
                self._deliver(self._take_in())

    def generate(self, prompts: list[str], **sampling: Any) -> list[str]:
        """Continue plain texts, as a base model does: no chat, no tools. The prompts are not part of the results."""
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the text {prompts[:40]!r}; accepted: a list of texts.")
        ids = [[self.tok.bos_id, *self.tok.encode(prompt)] for prompt in prompts]
        return [replies[0].text for replies in self.sample(ids, 1, Sampling(**sampling), tools=False)]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int = 1,
        sampling: Sampling | None = None,
        *,
        tools: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """`samples` replies to each prompt: for evaluation and reinforcement learning.

        The whole blocks of a prompt are fed once for all its samples; prompts flow through the rows without waiting for each
        other. With a seed, each reply has its own random numbers, made of the seed, the prompt's place and its own.
        `progress(done, total)` is called after each step that completed replies.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples}; accepted: 1 or more replies to each prompt.")
        settings = sampling or Sampling()
        groups = [
            [self._request(prompt, settings, tools, stream=(place, n), streaming=False) for n in range(samples)]
            for place, prompt in enumerate(prompts)
        ]
        requests = [request for group in groups for request in group]
        self._enqueue(requests)
        done = 0  # counted in order: a late one hides those behind it for a while
        try:
            while done < len(requests):
                before = done
                with self._stepping:
                    self._advance()
                    while done < len(requests) and requests[done].finish is not None:
                        done += 1
                if progress and done > before:
                    progress(done, len(requests))
        finally:
            self._withdraw(requests)
        if failed := next((request.error for request in requests if request.error), None):
            raise RuntimeError(f"a reply could not be finished: {failed}") from failed
        return [[request.completion() for request in group] for group in groups]
