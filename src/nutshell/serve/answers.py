"""Pieces of the engine -> OpenAI's completion objects, whole or as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response

from nutshell.serve.parts import PART_TYPES, Parts, add_piece, text_of
from nutshell.serve.worker import Events, Ticket

PING_SECONDS = 15.0
"""A stream that waits this long for its first or next token sends a comment, so that proxies keep it open."""


class Choice:
    """What has been said so far in one of the `n` answers."""

    def __init__(self) -> None:
        self.parts: Parts = []
        self.logprobs: list[dict[str, Any]] = []
        self.tokens = 0
        self.finish: str | None = None

    def add(self, piece: Any, tok: Any, want_logprobs: bool) -> list[dict[str, Any]]:
        """Take one piece; returns its entries for `logprobs.content` (none for what the user does not read)."""
        add_piece(self.parts, piece)
        self.tokens += piece.token_id >= 0  # -1 is text that was held back, or the end of a cancelled answer
        if piece.finish is not None:
            self.finish = "length" if piece.finish == "length" else "stop"
        if not want_logprobs or piece.kind != "text" or piece.logprob is None or not tok.token_bytes(piece.token_id):
            return []
        entry = _token(piece.token_id, piece.logprob, tok)
        entry["top_logprobs"] = [_token(token_id, logprob, tok) for token_id, logprob in piece.top]
        self.logprobs.append(entry)
        return [entry]

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text_of(self.parts), "refusal": None}
        if any(part["type"] != "text" for part in self.parts):
            message["nutshell"] = {"parts": self.parts}
        return message


def _token(token_id: int, logprob: float, tok: Any) -> dict[str, Any]:
    raw = tok.token_bytes(token_id)
    # JSON has no -inf, which is what a token that top_k or top_p ruled out has.
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}


class Answer:
    """One request on its way: the ticket, its choices, and the queue that the worker's thread fills."""

    def __init__(
        self,
        ticket: Ticket,
        tok: Any,
        *,
        model: str,
        choices: int,
        prompt_tokens: int,
        dropped: int,
        logprobs: bool,
        began: float,
    ):
        self.ticket = ticket
        self.tok = tok
        self.choices = [Choice() for _ in range(choices)]
        self.prompt_tokens = prompt_tokens
        self.want_logprobs = logprobs
        self.began = began  # when the request arrived
        self.first_token_seconds: float | None = None
        self.base: dict[str, Any] = {"id": "", "object": "", "created": int(time.time()), "model": model}
        self.note: dict[str, Any] = {"nutshell": {"dropped_messages": dropped}} if dropped else {}
        self._queue: asyncio.Queue[Events | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def deliver(self, events: Events | Exception) -> None:
        """Called on the worker's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, events)

    async def events(self) -> AsyncIterator[Events]:
        """What arrived since the last time, until every choice is finished. Raises what the engine raised."""
        unfinished = len(self.choices)
        while unfinished:
            batch = await self._queue.get()
            merged: Events = []
            while True:
                if isinstance(batch, Exception):
                    raise batch
                merged += batch
                if self._queue.empty():
                    break
                batch = self._queue.get_nowait()
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.began
            unfinished -= sum(piece.finish is not None for _, piece in merged)
            yield merged

    def usage(self) -> dict[str, int]:
        completion = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion` object, once all choices are finished."""
        async for events in self.events():
            for index, piece in events:
                self.choices[index].add(piece, self.tok, self.want_logprobs)
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self.want_logprobs else None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self.choices)
        ]
        return {**self.base, "object": "chat.completion", "choices": choices, "usage": self.usage(), **self.note}

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk` objects: the role, the text as it comes, the reason it ended, and the usage."""
        base: dict[str, Any] = {**self.base, "object": "chat.completion.chunk"}
        if include_usage:
            base["usage"] = None
        for index in range(len(self.choices)):
            role = {"role": "assistant", "content": "", "refusal": None}
            yield {**base, "choices": [_delta(index, role)], **self.note}
        async for events in self.events():
            for delta in self._deltas(events):
                yield {**base, "choices": [delta]}
        if include_usage:
            yield {**base, "choices": [], "usage": self.usage()}

    def _deltas(self, events: Events) -> list[dict[str, Any]]:
        """One delta for each run of pieces of one choice and kind; a finish gets its own."""
        deltas: list[dict[str, Any]] = []
        last: tuple[int, str] | None = None
        for index, piece in events:
            choice = self.choices[index]
            entries = choice.add(piece, self.tok, self.want_logprobs)
            if piece.text or entries:
                if last != (index, piece.kind):
                    empty = {"content": ""} if piece.kind == "text" else _tool_delta(piece.kind)
                    deltas.append(_delta(index, empty, {"content": [], "refusal": None} if entries else None))
                    last = (index, piece.kind)
                delta = deltas[-1]["delta"]
                if piece.kind == "text":
                    delta["content"] += piece.text
                else:
                    delta["nutshell"]["text"] += piece.text
                if entries:
                    deltas[-1]["logprobs"]["content"] += entries
            if piece.finish is not None:
                deltas.append({**_delta(index, {}), "finish_reason": choice.finish})
                last = None
        return deltas


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _tool_delta(kind: str) -> dict[str, Any]:
    return {"nutshell": {"type": PART_TYPES[kind], "text": ""}}


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends `events` as they come. A client that leaves ends the stream; `close` runs whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events
        self.close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        following: asyncio.Future[bytes | None] | None = None
        try:
            await send(start)
            while True:
                following = following or asyncio.ensure_future(_next_or_none(self.events))
                either: set[asyncio.Future[Any]] = {gone, following}
                await asyncio.wait(either, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not following.done():
                    await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
                    continue
                chunk = following.result()
                if chunk is None:
                    break
                following = None
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.close()
            tasks = [task for task in (gone, following) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _next_or_none(iterator: AsyncIterator[bytes]) -> bytes | None:
    return await anext(iterator, None)


async def wait_for_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
