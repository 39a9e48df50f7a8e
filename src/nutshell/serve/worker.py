"""The one thread that owns the engine: everything that touches it happens here, between two steps.

The event loop reserves slots, hands over prompts and cancels; each of these only appends to a queue under a lock
that is held for microseconds, so a long step never holds up an HTTP request. Deltas go back through the handle's
`deliver`, which is called on the worker's thread.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from nutshell.infer.grammar import GrammarError

if TYPE_CHECKING:
    from nutshell.infer.sampling import Sampling

log = logging.getLogger("nutshell.serve")

FAILURES_IN_A_ROW = 3
"""After this many failures without a finished answer between them /health reports a failure, until an answer is finished."""

Deltas = list[tuple[int, Any]]
"""(choice index, delta) pairs of one step that belong to one request."""
Deliver = Callable[[Deltas | Exception], None]


class StoppedError(RuntimeError):
    """The worker was stopped before this answer was finished."""


class RequestHandle:
    """The slots of one HTTP request: one per choice (`n`), taken before any work is done for it."""

    def __init__(self, worker: "Worker", slots: int):
        self.worker = worker
        self.slots = slots
        self.closed = False
        self.request_id = ""
        self.arrived = 0.0  # by time.monotonic
        self.taken = time.monotonic()
        self.queue_seconds: float | None = None
        """From taking the slots to the first delta: what tokenizing, the queue and the prompt took."""
        self.deliver: Deliver = lambda deltas: None

    def submit(
        self, prompt: list[int], samplings: "Sequence[Sampling]", deliver: Deliver, *, first: int = 0, tools: bool = True
    ) -> None:
        """Hand a prompt and the sampling of each choice, numbered from `first`, to the engine; `deliver` gets the deltas, or one
        exception."""
        self.deliver = deliver
        self.worker.post(lambda: self.worker.begin(self, prompt, samplings, first, tools))

    def compute(self, work: Callable[[], Any]) -> "Future[Any]":
        """Run `work` on the engine's thread, one such piece between two steps; cancelled where the handle is closed by then."""
        future: Future[Any] = Future()
        self.worker.post(lambda: self.worker.jobs.append((self, work, future)))
        return future

    def close(self) -> None:
        """Give the slots back and stop what still runs. May be called twice, and from any thread."""
        if self.worker.release(self):
            self.worker.post(lambda: self.worker.end(self))


class Worker:
    """Steps `engine` on its own thread and accepts at most `engine.max_rows + max_queue` answers at a time."""

    def __init__(self, engine: Any, max_queue: int = 64):
        self.engine = engine
        self.capacity = engine.max_rows + max_queue
        self.in_flight = 0  # slots taken: waiting and running
        self.failures = 0  # since the last answer that was finished
        self.last_error: Exception | None = None
        self.steps = 0
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self.jobs: deque[tuple[RequestHandle, Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._owners: dict[Any, tuple[RequestHandle, int]] = {}  # engine's request: handle, choice; on the worker's thread only

    # ---- any thread

    @property
    def failed(self) -> bool:
        return self.failures >= FAILURES_IN_A_ROW

    def reserve(self, slots: int) -> RequestHandle | None:
        """Take `slots` at once; None when fewer are free."""
        with self._lock:
            if self._stopping or self.in_flight + slots > self.capacity:
                return None
            self.in_flight += slots
        return RequestHandle(self, slots)

    def release(self, handle: RequestHandle) -> bool:
        with self._lock:
            if handle.closed:
                return False
            handle.closed = True
            self.in_flight -= handle.slots
        return True

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` on the worker's thread before the next step."""
        with self._lock:
            self._inbox.append(action)
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="nutshell-engine", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """Stop after the step that is running; answers that are not finished get an error."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10.0)

    # ---- the worker's thread

    def begin(
        self, handle: RequestHandle, prompt: list[int], samplings: "Sequence[Sampling]", first: int = 0, tools: bool = True
    ) -> None:
        if handle.closed:
            return
        try:
            for index, request in enumerate(self.engine.submit_choices(prompt, samplings, tools), first):
                self._owners[request] = (handle, index)
        except Exception as error:
            self.failures, self.last_error = self.failures + 1, error
            self._send(handle, error)

    def end(self, handle: RequestHandle) -> None:
        for request in [request for request, (owner, _) in self._owners.items() if owner is handle]:
            self.engine.cancel(request)
            del self._owners[request]

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while not self._stopping and (self._inbox or self.jobs or self.engine.busy):
                try:  # nothing may end this thread: the server would look well and answer nobody
                    self._empty_inbox()
                    if self.jobs:
                        self._compute_one()
                    if self.engine.busy:
                        self.steps += 1
                        began = time.monotonic()
                        deltas = self.engine.step()
                        self._note_queue_times(began)
                        self._dispatch(deltas)
                except Exception as error:
                    names = ", ".join(sorted({owner.request_id for owner, _ in self._owners.values()}))
                    log.exception("the engine failed in a step; its answers are given up (%s)", names or "none")
                    self.failures, self.last_error = self.failures + 1, error
                    self._give_up(error)
        stopped = StoppedError("the server is shutting down")
        self._give_up(stopped)
        with contextlib.suppress(Exception):
            self._empty_inbox()  # answers that had not begun
        for handle, _, future in self.jobs:
            self._send(handle, stopped)
            future.set_exception(stopped)

    def _compute_one(self) -> None:
        handle, work, future = self.jobs.popleft()
        if handle.closed or not future.set_running_or_notify_cancel():
            future.cancel()
            return
        try:
            future.set_result(work())
            self.failures = 0
        except Exception as error:
            self.failures, self.last_error = self.failures + 1, error
            future.set_exception(error)

    def _empty_inbox(self) -> None:
        while True:
            with self._lock:
                if not self._inbox:
                    return
                action = self._inbox.popleft()
            action()

    def _note_queue_times(self, began: float) -> None:
        """A request has waited until the step that fed the first of its prompt."""
        for request, (handle, _) in self._owners.items():
            if handle.queue_seconds is None and (request.ids or len(request.pending) != len(request.prompt)):
                handle.queue_seconds = began - handle.taken

    def _dispatch(self, deltas: Sequence[Any]) -> None:
        batches: dict[RequestHandle, Deltas] = {}
        for delta in deltas:
            if delta.request not in self._owners:  # cancelled since
                continue
            handle, index = self._owners[delta.request]
            batches.setdefault(handle, []).append((index, delta))
            if delta.finish is not None:
                del self._owners[delta.request]
                self.failures = (
                    self.failures if delta.request.error else 0
                )  # not after each step: answers that always break at their second token are failures too
        for handle, batch in batches.items():
            # Its own failure: its tool did not work, or the model's output was no number.
            broken = next((delta.request.error for _, delta in batch if delta.request.error), None)
            if broken:
                if not isinstance(broken, GrammarError):  # a schema that asks too much is no failure of ours
                    self.failures, self.last_error = self.failures + 1, broken
                self.end(handle)
            self._send(handle, broken or batch)

    def _give_up(self, error: Exception) -> None:
        for handle in {owner for owner, _ in self._owners.values()}:
            self.end(handle)
            self._send(handle, error)

    def _send(self, handle: RequestHandle, deltas: Deltas | Exception) -> None:
        if handle.closed:
            return
        try:
            handle.deliver(deltas)
        except RuntimeError:  # the event loop is gone
            handle.close()
