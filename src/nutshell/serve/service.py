"""What the routes share: the models, bodies parsed off the event loop, slots taken, and answers given whole or streamed."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from nutshell.serve.api import SamplingFields
from nutshell.serve.completions import Completion, EventStream, sse
from nutshell.serve.errors import APIError, as_api_error, not_ready
from nutshell.serve.models import LoadedModel, Models
from nutshell.serve.offers import Offer
from nutshell.serve.prometheus import Metrics
from nutshell.serve.worker import RequestHandle, Worker

log = logging.getLogger("nutshell.serve")

RETRY_SECONDS = 1
MAX_OBJECTS = 4096
"""Most objects and lists in a request's JSON, counted before it is parsed."""

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


def has_too_many_objects(raw: bytes) -> bool:
    """Whether JSON has more than MAX_OBJECTS objects and lists outside its texts.

    The body is split at its quotes in pieces, because splitting it whole would hold the interpreter for 100 ms.
    """
    plain, count, inside = raw.replace(rb"\\", b"").replace(rb"\"", b""), 0, 0
    for start in range(0, len(plain), 1 << 15):
        pieces = plain[start : start + (1 << 15)].split(b'"')
        outside = b"".join(pieces[inside::2])
        count += outside.count(b"{") + outside.count(b"[")
        inside = (inside + len(pieces) - 1) % 2
        if count > MAX_OBJECTS:
            return True
    return False


class Service:
    """The state behind the routes: models, metrics, and whether new work is taken."""

    def __init__(self, models: Models, *, ignore_tools: bool = False):
        self.models, self.ignore_tools = models, ignore_tools
        self.metrics = Metrics(models.cache_stats)
        self.metrics.in_flight.set_function(lambda: models.in_flight)
        self.metrics.waiting.set_function(
            lambda: sum(max(0, one.worker.in_flight - one.engine.max_rows) for one in list(models.loaded.values()))
        )
        self.metrics.loaded.set_function(lambda: len(models.loaded))
        self.draining = False
        # Long prompts take a while to tokenize; two threads keep them off the event loop and out of each other's way.
        self.tokenizers = ThreadPoolExecutor(2, thread_name_prefix="nutshell-tokenize")
        self.unpacking = asyncio.Semaphore(1)

    @property
    def worker(self) -> Worker | None:
        """Of the default model, where it is loaded."""
        return self.models.default.worker if self.models.default else None

    def status(self) -> str:
        """Of the default model: another one that fails does not take this server out of a balancer."""
        if self.draining:
            return "shutting down"
        if not self.models.started:
            return "loading"
        return "failed" if self.failure() else "ok"

    def failure(self) -> str:
        """What is wrong with the default model; empty where nothing is."""
        if self.worker is None:
            error = self.models.default_failure
            return f"it cannot be loaded: {error!r}" if error else ""
        failed = f"{self.worker.failures} failures in a row, the last one: {self.worker.last_error!r}"
        return failed if self.worker.failed else ""

    async def model(self, id: str | None) -> tuple[Offer, LoadedModel]:
        """The model that a request names; one that failed is tried again, as it may recover."""
        if (status := self.status()) in ("loading", "shutting down"):
            raise not_ready(status, {"loading": 2, "shutting down": 10}[status])
        return await self.models.get(id)

    async def off_loop(self, work: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.tokenizers, work, *args)

    async def read(self, request: Request, shape: type[Body]) -> Body:
        """The body as `shape`. Bodies are parsed one at a time, in a thread: they grow twentyfold in memory."""
        raw = await request.body()

        def unpack() -> Body:
            if raw.count(b"{") + raw.count(b"[") > MAX_OBJECTS and has_too_many_objects(raw):
                raise APIError(400, f"the body has more than {MAX_OBJECTS} objects; send fewer parts", param="messages")
            return shape.model_validate_json(raw)

        async with self.unpacking:
            return await self.off_loop(unpack)

    def reserve(self, worker: Worker, slots: int, param: str, request: Request) -> RequestHandle:
        """Slots for this many answers; 429 where the queue is full."""
        if slots > worker.capacity:
            message = f"this asks for {slots} answers; this server makes at most {worker.capacity} at a time"
            raise APIError(400, message, param=param)
        handle = worker.reserve(slots)
        if handle is None:
            self.metrics.rejected.inc()
            message = f"the server is busy: {worker.in_flight} answers run or wait; try again"
            raise APIError(429, message, type="rate_limit_error", code="queue_full", retry_after_seconds=RETRY_SECONDS)
        handle.request_id, handle.arrived = request.scope["nutshell"]["id"], request.scope["nutshell"]["began"]
        return handle

    async def answer(self, completion: Completion, body: SamplingFields, request: Request) -> Response:
        """The answer as server-sent events where `stream` asks for them, else whole as JSON. Ends when the client leaves."""
        if body.stream:
            return EventStream(self._events(completion, body.include_usage(), request), completion.handle.close)
        whole = asyncio.ensure_future(completion.whole())
        gone = asyncio.ensure_future(request.receive())  # the body was read, so what comes next is the client's leaving
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            # Nobody reads what is answered to a client that is gone.
            return JSONResponse(whole.result()) if whole.done() else Response(status_code=499)
        finally:
            completion.handle.close()
            whole.cancel()
            gone.cancel()
            await asyncio.gather(whole, gone, return_exceptions=True)
            self.count(completion, request)

    async def _events(self, completion: Completion, include_usage: bool, request: Request) -> AsyncIterator[bytes]:
        try:
            async for chunk in completion.chunks(include_usage):
                yield sse(chunk)
            yield b"data: [DONE]\n\n"
        except Exception as error:
            if (told := as_api_error(error)) is None:
                log.exception("an answer failed while it was streamed")
                told = APIError(500, "the server failed in the middle of this answer", type="server_error")
            yield sse(told.body)
        finally:
            self.count(completion, request)

    def count(self, completion: Completion, request: Request) -> None:
        """Put what an answer took into the metrics, and beside its line of the access log."""
        usage = completion.usage()
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.completion_tokens.inc(usage["completion_tokens"])
        if completion.first_token_seconds is not None:
            self.metrics.first_token_seconds.observe(completion.first_token_seconds)
            longest = max(choice.tokens for choice in completion.choices)
            if longest > 1:
                since = time.monotonic() - completion.handle.arrived - completion.first_token_seconds
                self.metrics.token_seconds.observe(since / (longest - 1))
        if completion.handle.queue_seconds is not None:
            self.metrics.queue_seconds.observe(completion.handle.queue_seconds)
        request.scope["nutshell"]["answer"] = {
            "model": completion.base["model"], "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"], "queue_seconds": completion.handle.queue_seconds,
            "first_token_seconds": completion.first_token_seconds,
        }  # fmt: skip

    def close(self) -> None:
        self.draining = True
        self.models.stop()
        self.tokenizers.shutdown(wait=False, cancel_futures=True)
