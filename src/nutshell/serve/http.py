"""How the server and the front speak HTTP: uvicorn's settings, deadlines of connections, and the sockets to listen on."""

import asyncio
import errno
import socket
from typing import Any, cast

import h11
import uvicorn
import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

from nutshell.serve.errors import APIError

HEADER_SECONDS = 15.0
"""Deadline for a request's headers: from their first byte, or for the first request from when the connection opened."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that the server never closes one that a client is about to use."""
MOST_CONNECTIONS = 256
"""Beyond this an idle connection is closed to make room; where none is idle, the new one is refused."""


class HeaderDeadline(H11Protocol):
    """HTTP/1.1 that closes a connection when the headers of a request, the first or a later one, do not arrive in time."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= MOST_CONNECTIONS:
            others = cast("set[HeaderDeadline]", self.connections)
            idle = next((one for one in others if one.cycle is None or one.cycle.response_complete), None)
            self.connections.discard(cast("HeaderDeadline", idle))  # aborting takes effect later
            (idle.transport if idle else transport).abort()
        super().connection_made(transport)
        self.deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # the headers are there
            self._cancel_deadline()
        else:
            self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_headers()  # of a request that had begun to arrive before the answer ended

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP, in the shape of all errors."""
        answer = APIError(400, "this is no valid HTTP request", code="invalid_http").response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_headers(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.deadline is None and not self.transport.is_closing() and self.conn.trailing_data[0]:
            self.deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def http_config(app: Any, *, json_log: bool = False) -> uvicorn.Config:
    """How uvicorn serves an application of ours."""
    return uvicorn.Config(
        app,
        http=HeaderDeadline,
        ws="none",
        log_level="info",
        log_config=None if json_log else uvicorn.config.LOGGING_CONFIG,
        server_header=False,
        access_log=False,  # the guard logs each request, with its id
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on `host`: on both loopbacks for localhost or 127.0.0.1, since localhost may mean either; on every address of IPv4
    and IPv6 for `::`. OSError where the port is taken."""
    hosts = ["127.0.0.1", "::1"] if host in ("localhost", "127.0.0.1") else [host]
    listeners: list[socket.socket] = []
    for name in hosts:
        number = port or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            family = socket.AF_INET6 if ":" in name else socket.AF_INET
            both = name == "::" and socket.has_dualstack_ipv6()
            listeners.append(socket.create_server((name, number), family=family, backlog=2048, dualstack_ipv6=both))
        except OSError as error:
            if listeners and not (port and error.errno == errno.EADDRINUSE):
                continue  # no IPv6 here
            for listener in listeners:
                listener.close()
            shown = f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
            wrong = f"cannot listen on {shown} ({error.strerror or error})"
            raise OSError(f"{wrong}; end the other server there, or choose another --port") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a client that reads nothing for a minute is cut off
        for listener in listeners:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    return listeners


def address_of(host: str, listeners: list[socket.socket]) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listeners[0].getsockname()[1]}"
