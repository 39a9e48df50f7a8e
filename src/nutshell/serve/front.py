"""`nutshell serve --workers N`: N servers, each a process with a GPU or cores of its own, behind one front (`proxy.py`).

The workers are servers as any other (`server.py`), but listen on Unix sockets in a folder that only this user can enter.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from nutshell.serve.guard import Guard
from nutshell.serve.http import address_of, http_config, listen
from nutshell.serve.logs import log_to_stderr
from nutshell.serve.proxy import Front, Upstream
from nutshell.serve.server import checked_key, end_on_hangup, names_of

log = logging.getLogger("uvicorn.error")

WATCH_SECONDS = 0.5
"""How often a worker is asked for its health; one that died is started again then."""
DRAIN_SECONDS = 30.0
"""A worker has 20 s for its running answers."""


class WorkerProcess(Upstream):
    """A server in a process of its own."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str], folder: Path):
        super().__init__(number, folder / str(number))
        self.command = [*command, "--worker-socket", str(self.socket)]
        self.environment, self.was_ready = {**os.environ, **environment}, False
        self.start()

    def start(self) -> None:
        """In a session of its own: Ctrl-C is for the front, which ends its workers. If it dies, stdin ends, and they do."""
        self.status = "loading"
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.PIPE, start_new_session=True)

    async def watch(self) -> int:
        """Keep its status, and start it again when it has died. Returns the exit code of one that never got ready."""
        while True:
            if (code := self.process.poll()) is not None:
                what = "is started again" if self.was_ready else "could not start"
                log.error("Worker %d ended with exit code %d and %s", self.number, code, what)
                if not self.was_ready:
                    return code if code > 0 else 1
                self.start()
            before = self.status
            self.status = await self.health() or ("loading" if before == "loading" else "down")
            if self.status == "ok" != before:
                log.info("Worker %d is ready (process %d)", self.number, self.process.pid)
                self.was_ready = True
            if self.status == "failed":  # it would stay so, as it gets no more requests
                self.process.terminate()
            await asyncio.sleep(WATCH_SECONDS)


class FrontServer(uvicorn.Server):
    """Watches the workers while it listens, and goes on listening while they finish their answers."""

    def __init__(self, workers: list[WorkerProcess], allowed_hosts: list[str] | None, json_log: bool):
        self.front, self.workers, self.watching = Front(workers), workers, list[asyncio.Task[int]]()
        super().__init__(http_config(Guard(self.front, allowed_hosts=allowed_hosts), json_log=json_log))

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.watching = [asyncio.create_task(worker.watch()) for worker in self.workers]

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or any(task.done() for task in self.watching)

    async def shutdown(self, sockets: Any = None) -> None:
        self.front.draining = True
        for task, worker in zip(self.watching, self.workers, strict=True):
            task.cancel()
            worker.process.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(one.process.poll() is None for one in self.workers) and not self.force_exit:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def exit_code(self) -> int:
        """Of a worker that could not start; 0 where all did."""
        return next((task.result() for task in self.watching if task.done() and not task.cancelled()), 0)


def serve_workers(
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    *,
    host: str,
    port: int,
    api_key: str | None,
    allow_hosts: Sequence[str],
    json_log: bool,
) -> int:
    """A server of `command` for each of `environments`, behind one front on `host` and `port`. Blocks until it is told to end.

    Returns the exit code: not 0 where a worker could not start. `command` takes `--worker-socket PATH`, and the key from
    NUTSHELL_API_KEY. Raises ValueError for what `serve` refuses, and OSError for a port that is taken.
    """
    if not hasattr(asyncio, "open_unix_connection"):
        raise ValueError("--workers needs Unix sockets, which this system does not have. Accepted: --workers 1.")
    api_key = checked_key(api_key, host, port)
    listeners = listen(host, port)
    folder = Path(tempfile.mkdtemp(prefix="nutshell-"))
    key = {} if api_key is None else {"NUTSHELL_API_KEY": api_key}
    workers: list[WorkerProcess] = []
    try:
        workers += (WorkerProcess(number, command, {**one, **key}, folder) for number, one in enumerate(environments))
        log_to_stderr("warning", json_log)  # each request is in its worker's log
        end_on_hangup()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        server = FrontServer(workers, names_of(host, allow_hosts) if api_key is None else None, json_log)
        log.info("Listening on %s; %d workers load", address_of(host, listeners), len(workers))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises a signal again after it has shut down gracefully
            server.run(sockets=listeners)
        return server.exit_code()
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
        for listener in listeners:
            listener.close()
        shutil.rmtree(folder, ignore_errors=True)
