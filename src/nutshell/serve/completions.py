"""What the engine says, turned into OpenAI's completion objects, whole or as server-sent events."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from nutshell.serve.parts import PART_TYPES, Parts, add_delta, text_of, tool_calls_of
from nutshell.serve.worker import Deltas, RequestHandle

PING_SECONDS = 15.0
"""A stream that has had no token for this long sends a comment, so that proxies keep it open."""


Logprob = tuple[int, float | None, Sequence[tuple[int, float]]]
"""A token, its log-probability, and the likeliest tokens of its place with theirs."""


class Choice:
    """What has been said so far in one of the completions."""

    def __init__(self) -> None:
        self.parts: Parts = []
        self.logprobs: list[Logprob] = []
        self.tokens = 0
        self.finish: str | None = None
        self.taken: list[int] = []
        self.called = 0  # calls of its tool that a stream has reported

    def add(self, delta: Any) -> list[Logprob]:
        """Add a delta; returns the log-probabilities that came with it (none for text that the user does not read)."""
        add_delta(self.parts, delta)
        self.tokens += delta.token_id >= 0  # -1 is text that was held back, or the end of a cancelled answer
        if delta.finish is not None:
            self.finish = "length" if delta.finish == "length" else "stop"
        if delta.kind != "text" or delta.logprob is None:
            return []
        entry = (delta.token_id, delta.logprob, delta.top)
        self.logprobs.append(entry)
        return [entry]

    def take(self, entry: Logprob, finish: str) -> None:
        """Add a token that is known without the engine, and end with it."""
        self.taken, self.logprobs, self.tokens, self.finish = [entry[0]], [entry], 1, finish

    def text(self, tok: Any) -> str:
        return text_of(self.parts) + tok.decode(self.taken)

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text_of(self.parts), "refusal": None}
        if any(part["type"] != "text" for part in self.parts):
            message["nutshell"] = {"parts": self.parts}
        return message


def chat_logprobs(entries: Sequence[Logprob], tok: Any) -> list[dict[str, Any]]:
    """The entries of `logprobs.content`: of tokens that have text."""

    def token(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = tok.token_bytes(token_id)
        # JSON has no -inf, which is what a token that top_k or top_p ruled out has.
        return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob or 0.0, -9999.0), "bytes": list(raw)}

    return [
        {**token(token_id, logprob), "top_logprobs": [token(*one) for one in top]}
        for token_id, logprob, top in entries
        if tok.token_bytes(token_id)
    ]


class Completion:
    """The answer to one request: its choices, and the queue that the worker's thread fills."""

    kind, id_prefix = "chat.completion", "chatcmpl"

    def __init__(self, handle: RequestHandle, tok: Any, model_id: str, prompt_tokens: int, want_logprobs: bool):
        self.handle, self.tok = handle, tok
        id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.base: dict[str, Any] = {"id": id, "object": self.kind, "created": int(time.time()), "model": model_id}
        self.choices = [Choice() for _ in range(handle.slots)]
        self.prompt_tokens, self.want_logprobs = prompt_tokens, want_logprobs
        self.first_token_seconds: float | None = None
        self.note: dict[str, Any] = {}  # for the first chunk, or the whole object
        self.tool: str | None = None  # its name, where calls are to be reported in OpenAI's form too
        self._queue: asyncio.Queue[Deltas | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def deliver(self, deltas: Deltas | Exception) -> None:
        """Called on the worker's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, deltas)

    async def deltas(self) -> AsyncIterator[Deltas]:
        """The deltas that arrived since the last time, until every choice is finished. Raises what the engine raised."""
        unfinished = sum(choice.finish is None for choice in self.choices)
        while unfinished:
            arrived = [await self._queue.get()]
            while not self._queue.empty():
                arrived.append(self._queue.get_nowait())
            merged: Deltas = []
            for deltas in arrived:
                if isinstance(deltas, Exception):
                    raise deltas
                merged += deltas
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.handle.arrived
            unfinished -= sum(delta.finish is not None for _, delta in merged)
            yield merged

    def tool_calls(self, index: int) -> list[dict[str, Any]]:
        """What choice `index` has called so far, where that is wanted."""
        parts, id = self.choices[index].parts, f"call_{self.base['id'][9:]}_{index}"
        return [] if self.tool is None else tool_calls_of(parts, self.tool, id)

    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.completion_tokens()
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion` object, once all choices are finished."""
        async for deltas in self.deltas():
            for index, delta in deltas:
                self.choices[index].add(delta)
        choices = [
            {
                "index": index,
                "message": choice.message() | ({"tool_calls": calls} if (calls := self.tool_calls(index)) else {}),
                "logprobs": {"content": chat_logprobs(choice.logprobs, self.tok), "refusal": None}
                if self.want_logprobs
                else None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self.choices)
        ]
        return {**self.base, "choices": choices, "usage": self.usage(), **self.note}

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk` objects: the role, the text as it comes, the reason it ended, and the usage."""
        base: dict[str, Any] = {**self.base, "object": "chat.completion.chunk"}
        if include_usage:
            base["usage"] = None
        for index in range(len(self.choices)):
            role = {"role": "assistant", "content": "", "refusal": None}
            yield {**base, "choices": [_choice(index, role)], **self.note}
        async for deltas in self.deltas():
            for choice in self._joined(deltas):
                yield {**base, "choices": [choice]}
        if include_usage:
            yield {**base, "choices": [], "usage": self.usage()}

    def _joined(self, deltas: Deltas) -> list[dict[str, Any]]:
        """Neighbours of one choice and kind as one `choices` entry; a finish gets its own."""
        joined: list[dict[str, Any]] = []
        last: tuple[int, str] | None = None
        for index, delta in deltas:
            choice = self.choices[index]
            entries = chat_logprobs(choice.add(delta), self.tok)
            for call in self.tool_calls(index)[choice.called :]:
                joined.append(_choice(index, {"tool_calls": [{"index": choice.called, **call}]}))
                choice.called, last = choice.called + 1, None
            if delta.text or entries:
                if last != (index, delta.kind):
                    text = {"content": ""} if delta.kind == "text" else {"nutshell": {"type": PART_TYPES[delta.kind], "text": ""}}
                    joined.append(_choice(index, text, {"content": [], "refusal": None} if entries else None))
                    last = (index, delta.kind)
                content = joined[-1]["delta"]
                if delta.kind == "text":
                    content["content"] += delta.text
                else:
                    content["nutshell"]["text"] += delta.text
                if entries:
                    joined[-1]["logprobs"]["content"] += entries
            if delta.finish is not None:
                joined.append({**_choice(index, {}), "finish_reason": choice.finish})
                last = None
        return joined


def _choice(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Sends `events` as they come, and a comment where none comes for long. Ends when the client leaves; `close` always runs."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.close = close
        self.sent = time.monotonic()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()

    async def stream_response(self, send: Any) -> None:
        async def noted(event: Any) -> None:
            self.sent = time.monotonic()
            await send(event)

        pinging = asyncio.ensure_future(self._ping(send))  # one task a stream: one a token is a third of a busy event loop
        try:
            await super().stream_response(noted)
        finally:
            pinging.cancel()

    async def _ping(self, send: Any) -> None:
        with contextlib.suppress(Exception):  # a client that is gone: the stream itself finds out
            while True:
                await asyncio.sleep(max(0.0, self.sent + PING_SECONDS - time.monotonic()) or PING_SECONDS)
                if time.monotonic() >= self.sent + PING_SECONDS:
                    await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
