"""`serve`: listen, load a model in the background, and shut down gracefully."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from nutshell.serve.app import create_app
from nutshell.serve.feedback import FeedbackStore
from nutshell.serve.guard import is_loopback
from nutshell.serve.http import address_of, http_config, listen
from nutshell.serve.logs import log_to_stderr
from nutshell.serve.models import MAX_LOADED, Models
from nutshell.serve.offers import run_name
from nutshell.serve.service import Service

log = logging.getLogger("uvicorn.error")

SWITCH_SECONDS = 0.0005
"""How long the engine's thread may keep the interpreter from the event loop; Python's 5 ms add up under load."""


class Server(uvicorn.Server):
    """Loads the model while it listens, and goes on listening while running answers finish, so that health checks see the 503
    and stop sending."""

    def __init__(
        self,
        app: FastAPI,
        *,
        open_engine: Callable[[Path], Any] | None = None,
        address: str = "",
        drain_seconds: float = 20.0,
        json_log: bool = False,
    ):
        super().__init__(http_config(app, json_log=json_log))
        self.service: Service = app.state.service
        self.open_engine, self.address = open_engine, address
        self.drain_seconds = drain_seconds
        self.loading: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        if self.open_engine is None:
            return
        try:
            await self.service.models.start(self.open_engine)
            log.info("%s is ready: %s (Ctrl-C ends it)", self.service.models.name, self.address)
        except asyncio.CancelledError:  # the server was ended before
            raise
        except BaseException as error:
            self.failure = error
            self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        self.service.draining = True
        models = self.service.models
        deadline = asyncio.get_running_loop().time() + self.drain_seconds
        if models.in_flight:
            log.info("Finishing %d answers, %g seconds at most", models.in_flight, self.drain_seconds)
        while models.in_flight and not self.force_exit:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("Giving up %d unfinished answers", models.in_flight)
                models.stop()
                break
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def serve(
    folder: str | Path,
    open_engine: Callable[[Path], Any],
    *,
    max_models: int = MAX_LOADED,
    max_queue: int = 64,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    allow_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    feedback: str | None = None,
    ignore_tools: bool = False,
    json_log: bool = False,
    worker_socket: str | None = None,
) -> None:
    """Serve the models of a run, or the one of a model folder. Blocks until it is told to end.

    Listens at once and answers 503 while `open_engine(model_folder)` makes the first engine. At most `max_models` are in memory
    at a time. `feedback` is a file that keeps what users say of answers. SIGTERM, SIGHUP and Ctrl-C let running answers finish.
    With `worker_socket`, the path of a Unix socket, it is a worker behind a front (`front.py`): it listens there, and ends when
    its stdin does.
    Raises ValueError for a public `host` without an `api_key`, and whatever loading raised.
    """
    api_key = checked_key(api_key, host, port)
    if "*" in cors_origins and api_key is None:
        raise ValueError("--allow-origin '*' lets every web site use this server; name the sites, or set an API key")
    allowed_hosts = names_of(host, allow_hosts) if api_key is None else None
    if max_models < 1:
        raise ValueError(f"--max-models is {max_models}; accepted: 1 or more models in memory")
    models = Models(run_name(folder), max_queue=max_queue, folder=folder, max_loaded=max_models)
    app = create_app(
        models, api_key=api_key, allowed_hosts=allowed_hosts, cors_origins=cors_origins,
        feedback_store=FeedbackStore(feedback) if feedback else None, ignore_tools=ignore_tools,
    )  # fmt: skip
    listeners = listen(host, port) if worker_socket is None else _listen_as_worker(worker_socket)
    address = address_of(host, listeners) if worker_socket is None else worker_socket
    server = Server(app, open_engine=open_engine, address=address, json_log=json_log)
    log_to_stderr("info", json_log)
    end_on_hangup()
    log.info("Listening on %s; the model loads", address)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        server.run(sockets=listeners)
    except KeyboardInterrupt:  # raised again by uvicorn after it has shut down gracefully
        pass
    finally:
        for listener in listeners:
            listener.close()
    if server.failure is not None:
        raise server.failure


def checked_key(key: str | None, host: str, port: int) -> str | None:
    """The key, or else that of NUTSHELL_API_KEY, without surrounding blanks.

    ValueError for one that no header can carry, for a public `host` without one, and for a `port` that is none.
    """
    if (key := key if key is not None else os.environ.get("NUTSHELL_API_KEY")) is not None:
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                "the API key is empty or has characters that no header can carry; use ASCII letters, digits and signs"
            )
    if not is_loopback(host) and key is None:
        raise ValueError(
            f"host {host!r} can be reached from other machines, and there is no API key; "
            "set one (NUTSHELL_API_KEY=... or --api-key KEY), or use --host 127.0.0.1"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must lie between 0 and 65535 (0 picks a free one)")
    return key


def names_of(host: str, allow_hosts: Sequence[str]) -> list[str]:
    """What a request may call a server on `host`, beside the names of this machine."""
    return [name.lower().rstrip(".") for name in (host, *allow_hosts)]


def end_on_hangup() -> None:
    """A terminal that is closed (SIGHUP) ends the server as SIGTERM does; not under nohup."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # not on the main thread
            signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))


def _listen_as_worker(path: str) -> list[socket.socket]:
    """A Unix socket. When the front is gone, stdin ends, and so does this process. The front's /health is not logged."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)

    def end_with_the_front() -> None:
        while os.read(0, 1):  # sys.stdin has a lock, which the end of the interpreter would find taken
            pass
        with contextlib.suppress(OSError):  # a front that was killed could not: the last of its workers removes the folder
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_the_front, daemon=True).start()
    logging.getLogger("nutshell.serve").addFilter(lambda record: getattr(record, "access", {}).get("path") != "/health")
    return [listener]
