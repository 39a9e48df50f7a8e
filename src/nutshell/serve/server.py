"""`serve`: load a model in the background, listen, and end in good order."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nutshell.serve.app import Service, create_app
from nutshell.serve.guard import is_loopback

log = logging.getLogger("uvicorn.error")

HEADER_SECONDS = 15.0
"""Deadline for a request's headers, from their first byte on; for the first request from when the connection opened."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection for their next request, so that none is closed under one."""
MOST_CONNECTIONS = 256
"""When there are more, one that waits for its next request goes; where none does, the new one."""


class HeaderDeadline(H11Protocol):
    """HTTP/1.1 that closes a connection whose headers, of the first request or a later one, do not arrive whole in time."""

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


class Server(uvicorn.Server):
    """Goes on listening while running answers finish, so that health checks see the 503 and stop sending."""

    def __init__(self, app: FastAPI, *, drain_seconds: float = 20.0, log_level: str = "info"):
        config = uvicorn.Config(
            app,
            http=HeaderDeadline,
            ws="none",
            log_level=log_level,
            server_header=False,
            access_log=False,  # the guard logs each request, with its id
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.service: Service = app.state.service
        self.drain_seconds = drain_seconds

    async def shutdown(self, sockets: Any = None) -> None:
        self.service.draining = True
        worker = self.service.worker
        deadline = asyncio.get_running_loop().time() + self.drain_seconds
        if worker is not None and worker.in_flight:
            log.info("Finishing %d answers, %g seconds at most", worker.in_flight, self.drain_seconds)
        while worker is not None and worker.in_flight and not self.force_exit:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("Giving up %d unfinished answers", worker.in_flight)
                worker.stop()
                break
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def serve(
    model: Any,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    name: str | None = None,
    device: str = "cpu",
    engine: str = "auto",
    open_model: Callable[[Any, str], tuple[Any, Any]] | None = None,
    api_key: str | None = None,
    max_rows: int = 16,
    max_queue: int = 64,
    drain_seconds: float = 20.0,
    log_level: str = "info",
    on_ready: Callable[[str], None] | None = None,
    allow_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
) -> None:
    """Serve `model`: a model folder, a run folder, a (model, tok) pair or an Engine. Blocks until it is told to end.

    A folder is opened by `open_model(folder, device)`, by plain loading where that is None. Listens at once and answers
    503 while the model loads; `on_ready` is then called with the address. SIGTERM and Ctrl-C let running answers finish
    for `drain_seconds`. Raises ValueError for a public `host` without an `api_key`, and whatever loading raised.
    """
    api_key = checked_key(api_key if api_key is not None else os.environ.get("NUTSHELL_API_KEY"))
    if not is_loopback(host) and api_key is None:
        raise ValueError(
            f"host {host!r} can be reached from other machines, and there is no API key; "
            "set one (NUTSHELL_API_KEY=... or --api-key KEY), or use --host 127.0.0.1"
        )
    if any(origin == "*" for origin in cors_origins) and api_key is None:
        raise ValueError("--cors-origin '*' lets every web site use this server; name the sites, or set an API key")
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must lie between 0 and 65535 (0 picks a free one)")
    listeners = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listeners[0].getsockname()[1]}"
    failure: list[BaseException] = []

    def open_engine() -> tuple[Any, Any]:
        from nutshell.infer.engine import Engine  # imports torch, which takes seconds: the page is there meanwhile

        if isinstance(model, (str, Path)):
            opened, tok = (open_model or _open)(model, device)
        elif isinstance(model, tuple):
            opened, tok = model
        else:
            return model, model.tok
        opened_engine = Engine(opened, tok, max_rows=max_rows, engine=engine)
        opened_engine.allocate()  # what does not fit is said now, not to the first who asks
        log.info("Replies: %s", opened_engine.computes)
        return opened_engine, tok

    async def load_in_background(service: Service) -> None:
        async def run() -> None:
            try:
                service.open(*await asyncio.to_thread(open_engine))
                log.info("%s is ready: %s (Ctrl-C ends it)", service.model_name, address)
                if on_ready is not None:
                    on_ready(address)
            except BaseException as error:
                failure.append(error)
                server.should_exit = True

        service.loading = asyncio.create_task(run())

    app = create_app(
        None,
        None,
        name or _name(model),
        api_key=api_key,
        max_queue=max_queue,
        allowed_hosts=[name.lower().rstrip(".") for name in (host, *allow_hosts)] if api_key is None else None,
        cors_origins=cors_origins,
        on_startup=load_in_background,
    )
    server = Server(app, drain_seconds=drain_seconds, log_level=log_level)
    with contextlib.suppress(OSError):  # ours goes where uvicorn's goes
        _log_to_stderr(log_level)
    log.info("Listening on %s; the model loads", address)
    try:
        server.run(sockets=listeners)
    except KeyboardInterrupt:  # raised again by uvicorn after it has shut down in good order
        pass
    finally:
        for listener in listeners:
            listener.close()
    if failure:
        raise failure[0]


def checked_key(key: str | None) -> str | None:
    """The key without blanks around it. ValueError for one that no client can send in a header."""
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key is empty or has characters that no header can carry; use ASCII letters, digits and signs")
    return key


def _log_to_stderr(level: str) -> None:
    ours = logging.getLogger("nutshell.serve")
    ours.setLevel(level.upper())
    if not ours.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        ours.addHandler(handler)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on `host`; on IPv6's loopback too where `host` is IPv4's, because localhost may mean either."""
    name = "127.0.0.1" if host == "localhost" else host
    try:
        listeners = [socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET, backlog=2048)]
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); end the other server there, or choose another --port"
        ) from error
    if name == "127.0.0.1":
        with contextlib.suppress(OSError):  # no IPv6 here, or its port is taken
            port = listeners[0].getsockname()[1]
            listeners.append(socket.create_server(("::1", port), family=socket.AF_INET6, backlog=2048))
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a client that reads nothing for a minute is cut off
        for listener in listeners:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    return listeners


def _open(folder: Any, device: str) -> tuple[Any, Any]:
    from nutshell.checkpoint import load

    model, tok = load(folder, device=device)
    return model.for_inference(), tok


def _name(model: Any) -> str:
    """A run folder's own name, so that `runs/demo/sft/step-000100` and `runs/demo` are both "demo"."""
    if not isinstance(model, (str, Path)):
        return "nutshell"
    folder = Path(model).resolve()
    return next((parent.name for parent in (folder, *folder.parents) if (parent / "plan.json").is_file()), folder.name)
