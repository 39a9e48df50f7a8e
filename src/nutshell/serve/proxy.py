"""The front of several servers: an ASGI application that passes each request to one of them, and tells how all of them do.

It parses nothing: the servers check keys and refuse, and the `Guard` around it checks sizes and deadlines. It chooses the server
of each request, and answers `/health` and `/metrics` for all of them.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import h11
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from nutshell.serve.completions import sse
from nutshell.serve.errors import APIError, not_ready
from nutshell.serve.guard import Receive, Scope, Send

ASK_SECONDS = 5.0
KNOWN_BEGINNING = 2
"""A server that has seen the beginning of a conversation may be this many answers busier than the others and still gets it."""
PEEK_BYTES = 4096
OF_ONE_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}

Headers = list[tuple[bytes, bytes]]


class Upstream:
    """A server on a Unix socket, and its status: "loading", "down", or what its /health says."""

    def __init__(self, number: int, socket: Path):
        self.number, self.socket = number, socket
        self.status, self.in_flight = "loading", 0

    async def ask(self, path: str, headers: Headers) -> tuple[int, bytes]:
        """Status and body of a GET."""

        async def get() -> tuple[int, bytes]:
            with closing(await Exchange.open(self)) as exchange:
                exchange.write(h11.Request(method="GET", target=path, headers=[*headers, (b"connection", b"close")]))
                exchange.write(h11.EndOfMessage())
                head, *rest = [event async for event in exchange.events()]
            return head.status_code, b"".join(bytes(event.data) for event in rest if isinstance(event, h11.Data))

        return await asyncio.wait_for(get(), ASK_SECONDS)

    async def health(self) -> str:
        """What /health says; empty where it cannot be asked."""
        try:
            _, body = await self.ask("/health", [(b"host", b"localhost")])
            return str(json.loads(body)["status"])
        except (OSError, h11.ProtocolError, ValueError, asyncio.TimeoutError):
            return ""


class Exchange:
    """One request to a server and its answer, on a connection of its own; `close` hangs up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer, self.close = reader, writer, writer.close
        self.http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, server: Upstream) -> "Exchange":
        """OSError where nobody listens."""
        return cls(*await asyncio.open_unix_connection(str(server.socket)))

    def write(self, event: Any) -> None:
        self.writer.write(self.http.send(event) or b"")

    async def events(self) -> AsyncIterator[Any]:
        """Response, Data as it comes, EndOfMessage. OSError or h11.RemoteProtocolError where the server hangs up before."""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(1 << 16))
            elif not isinstance(event, h11.InformationalResponse):
                yield event
                if isinstance(event, h11.EndOfMessage):
                    return


class Front:
    """The ASGI application that passes each request to a server. A `Guard` belongs around it, which reads bodies whole."""

    def __init__(self, servers: Sequence[Upstream]):
        self.servers, self.draining = servers, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            own = {"/health": self.health, "/metrics": self.metrics}.get(scope["path"])
            if own and scope["method"] in ("GET", "HEAD"):
                await (await own(scope["headers"]))(scope, receive, send)
            else:
                await self.pass_on(scope, receive, send)

    async def health(self, headers: Headers) -> Response:
        """200 where every server is ready, else 503 with what each of them says."""
        told = {str(server.number): server.status for server in self.servers}
        bad = sorted({status for status in told.values() if status != "ok"})
        status = "shutting down" if self.draining else ", ".join(bad) or "ok"
        said = {"status": status, "workers": told}
        return JSONResponse(said) if status == "ok" else JSONResponse(said, 503, {"Retry-After": "2"})

    async def metrics(self, headers: Headers) -> Response:
        """Those of all servers that answer, or their refusal of a wrong key."""
        headers = [header for header in headers if header[0] in (b"host", b"authorization")]
        asked = await asyncio.gather(*(one.ask("/metrics", headers) for one in self.servers), return_exceptions=True)
        texts = {}
        for server, answer in zip(self.servers, asked, strict=True):
            if isinstance(answer, BaseException):
                continue
            status, body = answer
            if status != 200:
                return Response(body, status, media_type="application/json")
            texts[str(server.number)] = body.decode()
        merged = CollectorRegistry()
        merged.register(Merged(texts))
        return Response(generate_latest(merged), media_type=CONTENT_TYPE_LATEST)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.draining:  # at once: a worker hears of it a tenth of a second later
            raise not_ready("shutting down", 10)
        body: bytes = (await receive())["body"]  # all of it: the guard has read it
        for server in self.order(body):
            try:
                exchange = await Exchange.open(server)
            except OSError:
                server.status = "down" if server.status == "ok" else server.status
                continue
            server.in_flight += 1
            try:
                return await self._exchange(exchange, body, scope, receive, send)
            except (OSError, h11.RemoteProtocolError):  # before the answer began
                message = f"worker {server.number} ended before it answered; ask again"
                raise APIError(502, message, type="server_error", code="worker_lost", retry_after_seconds=1) from None
            finally:
                server.in_flight -= 1
                exchange.close()
        raise not_ready("no worker answers", 2)

    def order(self, beginning: bytes) -> list[Upstream]:
        """The servers in the order to try: those that are ready first, of them the least busy."""
        message = re.search(rb'"messages"\s*:\s*\[\s*\{[^}]*', beginning[:PEEK_BYTES])
        knows = hash(message[0]) % len(self.servers) if message else -1

        def cost(server: Upstream) -> tuple[bool, int, bool]:
            known = server.number == knows
            return server.status != "ok", server.in_flight - KNOWN_BEGINNING * known, not known

        return sorted(self.servers, key=cost)

    async def _exchange(self, exchange: Exchange, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the request on, and its answer back as it comes, until that ends or the client leaves.

        OSError or h11.RemoteProtocolError where the server is lost before it answers.
        """
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [header for header in scope["headers"] if header[0] not in (*OF_ONE_HOP, b"content-length", b"host")]
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")  # HTTP/1.0 need not name one
        headers += [(b"host", host), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        exchange.write(h11.Request(method=scope["method"], target=target, headers=headers))
        exchange.write(h11.Data(data=body))
        exchange.write(h11.EndOfMessage())
        tasks = [asyncio.ensure_future(_send_answer(exchange, send)), asyncio.ensure_future(receive())]  # receive: of its leaving
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _send_answer(exchange: Exchange, send: Send) -> None:
    """What the server answers, as it comes. A stream that breaks off says so; another answer is cut off, as its length tells."""
    is_stream = None
    try:
        async for event in exchange.events():
            if isinstance(event, h11.Response):
                headers = [(name, value) for name, value in event.headers if name not in (*OF_ONE_HOP, b"date")]
                is_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
                await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (OSError, h11.RemoteProtocolError):
        if is_stream is None:
            raise
        lost = APIError(502, "the worker ended in the middle of this answer; ask again", type="server_error", code="worker_lost")
        await send({"type": "http.response.body", "body": sse(lost.body) if is_stream else b""})


class Merged(Collector):
    """Metrics of several servers, each series with the label `worker`."""

    def __init__(self, texts: dict[str, str]):
        self.families: dict[str, Metric] = {}
        for worker, text in texts.items():
            for family in text_string_to_metric_families(text):
                merged = self.families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)

    def collect(self) -> Iterator[Metric]:
        yield from self.families.values()
