"""The one thread that owns the engine: everything that touches it happens here, between two steps.

The event loop reserves slots, hands over prompts and cancels; each of these only appends to a queue under a lock
that is held for microseconds, so a long step never holds up an HTTP request. Pieces go back through the ticket's
`deliver`, which is called on the worker's thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nutshell.infer.sampling import Sampling


log = logging.getLogger("nutshell.serve")

FAILURES_IN_A_ROW = 3
"""So many, with no finished answer between them, and the server says that it is broken, until an answer is finished."""

Events = list[tuple[int, Any]]
"""(choice index, Piece) pairs of one step that belong to one ticket."""


class StoppedError(RuntimeError):
    """The worker was stopped before this answer was finished."""


class Ticket:
    """The slots of one HTTP request: one per choice (`n`), taken before any work is done for it."""

    def __init__(self, worker: "Worker", slots: int):
        self.worker = worker
        self.slots = slots
        self.closed = False
        self.request_id = ""
        self.deliver: Callable[[Events | Exception], None] = lambda events: None

    def submit(
        self,
        prompt: list[int],
        samplings: "Sequence[Sampling]",
        deliver: Callable[[Events | Exception], None],
        tools: bool = True,
    ) -> None:
        """Hand the prompt and the sampling of each choice to the engine; `deliver` gets the pieces, or one exception."""
        self.deliver = deliver
        self.worker.post(lambda: self.worker.begin(self, prompt, samplings, tools))

    def close(self) -> None:
        """Give the slots back and stop what still runs. May be called twice, and from any thread."""
        if self.worker.release(self):
            self.worker.post(lambda: self.worker.end(self))


class Worker:
    """Steps `engine` on its own thread; at most `engine.max_rows + max_queue` answers are accepted at a time."""

    def __init__(self, engine: Any, max_queue: int = 64):
        if max_queue < 0:
            raise ValueError(f"max_queue is {max_queue}; it must be 0 or more (answers that may wait for a free row)")
        self.engine = engine
        self.capacity = engine.max_rows + max_queue
        self.in_flight = 0  # slots taken: waiting and running
        self.failures = 0  # since the last answer that was finished
        self.last_error: Exception | None = None
        self.steps = 0
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        # Touched by the worker's thread only. The request is kept beside its ticket so that its id stays unique.
        self._owners: dict[int, tuple[Any, Ticket, int]] = {}

    # ---- any thread

    @property
    def failed(self) -> bool:
        return self.failures >= FAILURES_IN_A_ROW

    def reserve(self, slots: int) -> Ticket | None:
        """Take `slots` at once, or None when they are not free."""
        with self._lock:
            if self._stopping or self.in_flight + slots > self.capacity:
                return None
            self.in_flight += slots
        return Ticket(self, slots)

    def release(self, ticket: Ticket) -> bool:
        with self._lock:
            if ticket.closed:
                return False
            ticket.closed = True
            self.in_flight -= ticket.slots
        return True

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` on the worker's thread before the next step."""
        with self._lock:
            self._inbox.append(action)
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="nutshell-engine", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Stop after the step that is running; answers that are not finished get an error."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    # ---- the worker's thread

    def begin(self, ticket: Ticket, prompt: list[int], samplings: "Sequence[Sampling]", tools: bool) -> None:
        if ticket.closed:
            return
        try:
            requests = self.engine.submit_choices(prompt, samplings, tools=tools)
            for index, request in enumerate(requests):
                self._owners[id(request)] = (request, ticket, index)
        except Exception as error:
            self._answer_failed(error)
            self.end(ticket)
            self._send(ticket, error)

    def end(self, ticket: Ticket) -> None:
        for key, (request, owner, _) in list(self._owners.items()):
            if owner is ticket:
                self.engine.cancel(request)
                del self._owners[key]

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while not self._stopping and (self._inbox or self.engine.busy):
                try:  # nothing may end this thread: the server would look well and answer nobody
                    self._empty_inbox()
                    if self.engine.busy:
                        self.steps += 1
                        self._dispatch(self.engine.step())
                except Exception as error:
                    names = ", ".join(sorted({owner.request_id for _, owner, _ in self._owners.values()}))
                    log.exception("the engine failed in a step; its answers are given up (%s)", names or "none")
                    self._answer_failed(error)
                    self._give_up(error)
        self._give_up(StoppedError("the server is shutting down"))

    def _answer_failed(self, error: Exception) -> None:
        self.failures, self.last_error = self.failures + 1, error

    def _empty_inbox(self) -> None:
        while True:
            with self._lock:
                if not self._inbox:
                    return
                action = self._inbox.popleft()
            action()

    def _dispatch(self, pieces: Sequence[Any]) -> None:
        batches: dict[Ticket, Events] = {}
        for piece in pieces:
            owner = self._owners.get(id(piece.request))
            if owner is None:  # cancelled since
                continue
            _, ticket, index = owner
            if isinstance(piece.request.error, Exception):  # its own: the model's output was no number
                self._answer_failed(piece.request.error)
                self.end(ticket)
                self._send(ticket, piece.request.error)
                continue
            batches.setdefault(ticket, []).append((index, piece))
            if piece.finish is not None:
                del self._owners[id(piece.request)]
                self.failures = 0  # not after each step: answers that always break at their second token are failures too
        for ticket, events in batches.items():
            self._send(ticket, events)

    def _give_up(self, error: Exception) -> None:
        tickets = {owner for _, owner, _ in self._owners.values()}
        for ticket in tickets:
            self.end(ticket)
            self._send(ticket, error)

    def _send(self, ticket: Ticket, events: Events | Exception) -> None:
        if ticket.closed:
            return
        try:
            ticket.deliver(events)
        except RuntimeError:  # the event loop is gone
            ticket.close()
