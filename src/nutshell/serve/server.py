"""`serve`: load a model in the background, listen, and end in good order."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nutshell.checkpoint import find, load
from nutshell.infer.engine import Engine
from nutshell.serve.app import Service, create_app

log = logging.getLogger("uvicorn.error")

HEADER_SECONDS = 15.0
"""Deadline for the headers of a connection's first request."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HeaderDeadline(H11Protocol):
    """HTTP/1.1 that closes a connection whose first request does not begin to arrive whole in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._check_that_headers_came)

    def _check_that_headers_came(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """Goes on listening while running answers finish, so that health checks see the 503 and stop sending."""

    def __init__(self, app: FastAPI, *, drain_seconds: float = 20.0, log_level: str = "info"):
        config = uvicorn.Config(
            app,
            http=HeaderDeadline,
            ws="none",
            log_level=log_level,
            server_header=False,
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
    open_model: Callable[[Any, str], tuple[Any, Any]] | None = None,
    api_key: str | None = None,
    max_rows: int = 16,
    max_queue: int = 64,
    drain_seconds: float = 20.0,
    log_level: str = "info",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve `model`: a model folder, a run folder, a (model, tok) pair or an Engine. Blocks until it is told to end.

    A folder is opened by `open_model(folder, device)`, by plain loading where that is None. Listens at once and answers
    503 while the model loads; `on_ready` is then called with the address. SIGTERM and Ctrl-C let running answers finish
    for `drain_seconds`. Raises ValueError for a public `host` without an `api_key`, and whatever loading raised.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError("the API key is empty; give one with at least one character, or none at all")
    if not is_loopback(host) and api_key is None:
        raise ValueError(
            f"host {host!r} can be reached from other machines, and there is no API key; "
            "set one (--api-key KEY), or use --host 127.0.0.1"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must lie between 0 and 65535 (0 picks a free one)")
    if isinstance(model, (str, Path)):
        find(model)  # a missing model is said before anything listens
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    failure: list[BaseException] = []

    def open_engine() -> tuple[Any, Any]:
        if isinstance(model, (str, Path)):
            opened, tok = (open_model or _open)(model, device)
        elif isinstance(model, tuple):
            opened, tok = model
        else:
            return model, model.tok
        return Engine(opened, tok, max_rows=max_rows), tok

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
        allowed_hosts=LOCAL_NAMES if api_key is None else None,
        on_startup=load_in_background,
    )
    server = Server(app, drain_seconds=drain_seconds, log_level=log_level)
    log.info("Listening on %s; the model loads", address)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # raised again by uvicorn after it has shut down in good order
        pass
    finally:
        listener.close()
    if failure:
        raise failure[0]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); end the other server there, or choose another --port"
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a client that reads nothing for a minute is cut off
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    return listener


def _open(folder: Any, device: str) -> tuple[Any, Any]:
    model, tok = load(folder, device=device)
    return model.for_inference(), tok


def _name(model: Any) -> str:
    """A run folder's own name, so that `runs/demo/sft/step-000100` and `runs/demo` are both "demo"."""
    if not isinstance(model, (str, Path)):
        return "nutshell"
    folder = Path(model).resolve()
    return next((parent.name for parent in (folder, *folder.parents) if (parent / "plan.json").is_file()), folder.name)
