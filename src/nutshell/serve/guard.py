"""The outermost ASGI layer: request ids, the API key, limits of size and time, security headers, a 500 for what nobody caught."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from nutshell.serve.errors import APIError

log = logging.getLogger("nutshell.serve")

MAX_BODY_BYTES = 2 * 1024 * 1024
BODY_SECONDS = 30.0
"""Deadline for a whole request body."""
LINGER_SECONDS = 2.0
"""The rest of a refused body is read and dropped for this long: a client that is cut off while it sends sees no answer."""
SEND_SECONDS = 30.0
"""Deadline for the client to take one chunk of an answer."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server at `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ClientGoneError(Exception):
    """The client left, or stopped reading its answer: there is nobody left to tell."""


class Guard:
    """Wraps the app. `open_paths` need no key; `allowed_hosts` are the values of Host that are accepted (None: any).

    Checking Host keeps another web site from reaching a server on localhost by pointing its own name at 127.0.0.1.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        api_key: str | None = None,
        open_paths: Iterable[str] = (),
        allowed_hosts: Iterable[str] | None = None,
        observe: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ):
        self.app = app
        self.key_hash = None if api_key is None else hashlib.sha256(api_key.encode()).digest()
        self.open_paths = frozenset(open_paths)
        self.allowed_hosts = None if allowed_hosts is None else frozenset(allowed_hosts)
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (plain := "/" + "/".join(filter(None, scope["path"].split("/")))) not in self.open_paths:
            scope["path"] = plain  # clients join addresses to //v1/models or end them with /; the page's are relative to its own
        request_id = f"req_{uuid.uuid4().hex}"
        status = 0
        began = time.monotonic()
        scope["nutshell"] = {"id": request_id, "began": began}

        async def guarded_send(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                own = [*event.get("headers", [])]
                names = {name for name, _ in own}  # a report has a policy of its own, what a worker answers the worker's id
                ours = [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
                extra = [header for header in ours if header[0] not in names]
                event = {**event, "headers": [*own, *extra]}
            await _send_within(SEND_SECONDS, send(event))

        try:
            await self._answer(scope, receive, guarded_send)
        except ClientGoneError:
            log.info("request %s: the client is gone", request_id)
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise
            failure = APIError(500, "the server failed on this request; its log says why", type="server_error")
            with contextlib.suppress(ClientGoneError):
                await failure.response()(scope, receive, guarded_send)
        finally:
            seconds = time.monotonic() - began
            self._log(scope, request_id, status, seconds)
            self.observe(scope["path"], status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read_body(scope, receive)
            await self.app(scope, _replay(body, receive), send)
        except APIError as error:
            await error.response()(scope, receive, send)

    def _log(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        """One line for each request: no prompts, answers or keys."""
        path = scope["path"].encode("unicode_escape").decode()[:100]
        answer = {name: value for name, value in scope["nutshell"].get("answer", {}).items() if value is not None}
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in answer.items()}
        access = {"request_id": request_id, "method": scope["method"], "path": path, "status": status or 499, "seconds": seconds}
        more = "".join(f" {name}={value}" for name, value in rounded.items())
        line = "%s %s %s %s %.3f s%s"
        shown = (request_id, scope["method"], path, status or "gone", seconds, more)
        log.info(line, *shown, extra={"access": {**access, "seconds": round(seconds, 4), **rounded}})

    def _check_host(self, scope: Scope) -> None:
        host = _header(scope, b"host").decode("latin-1").lower()
        if self.allowed_hosts is None or not host:  # every browser names it; balancers that speak HTTP/1.0 do not
            return
        name = host[1 : host.rfind("]")] if host.startswith("[") else host.split(":")[0].rstrip(".")
        if name not in self.allowed_hosts and not is_loopback(name):
            raise APIError(
                400,
                f"this server answers to this machine's own names (localhost, 127.0.0.1, [::1]), not to {name[:100]!r}; "
                "start it with --allow-host NAME, or with an API key",
                code="unknown_host",
            )

    def _check_key(self, scope: Scope) -> None:
        if self.key_hash is None or scope["path"] in self.open_paths:
            return
        scheme, _, key = _header(scope, b"authorization").partition(b" ")
        # Hashes, so that the comparison takes the same time whatever the length of the key that was sent.
        given = hashlib.sha256(key.strip()).digest()
        if not hmac.compare_digest(given, self.key_hash) or scheme.lower() != b"bearer":
            raise APIError(
                401,
                "wrong or missing API key; send it as 'Authorization: Bearer KEY'",
                type="authentication_error",
                code="invalid_api_key",
            )

    def _check_length(self, scope: Scope) -> None:
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            raise self._too_large()

    @staticmethod
    def _too_large() -> APIError:
        message = f"the body is larger than {MAX_BODY_BYTES} bytes; send less text"
        return APIError(413, message, code="request_too_large")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body of a request that this server takes; APIError for any other."""
        try:
            self._check_host(scope)
            self._check_key(scope)
            self._check_length(scope)
        except APIError:
            if not _header(scope, b"expect"):  # who asks before sending is told before sending
                await _forget_body(receive)
            raise
        chunks: list[bytes] = []
        size = 0
        deadline = time.monotonic() + BODY_SECONDS
        while True:
            try:
                event = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                message = f"the body did not arrive within {BODY_SECONDS:g} seconds"
                raise APIError(408, message, code="request_timeout") from None
            if event["type"] == "http.disconnect":
                raise ClientGoneError
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            more = event.get("more_body", False)
            if size > MAX_BODY_BYTES:
                if more:
                    await _forget_body(receive)
                raise self._too_large()
            if not more:
                break
        if (packed := _header(scope, b"content-encoding").decode("latin-1")) not in ("", "identity"):
            raise APIError(415, f"the body is packed ({packed[:40]}); send it as it is", code="unsupported_encoding")
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and not kind.endswith(b"json"):
            # Browsers send other types to foreign sites without asking; for JSON they ask first, and are refused.
            raise APIError(400, "send the header 'Content-Type: application/json'", code="wrong_content_type")
        return b"".join(chunks)


async def _forget_body(receive: Receive) -> None:
    async def read() -> None:
        while (await receive()).get("more_body"):
            pass

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), LINGER_SECONDS)


async def _send_within(seconds: float, sending: Awaitable[None]) -> None:
    """ClientGoneError where it takes longer. `asyncio.wait_for` would make a task of every token."""
    task, late = asyncio.current_task(), False
    assert task is not None

    def cut_off() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, cut_off)
    try:
        await sending
    except OSError as error:
        raise ClientGoneError from error
    except asyncio.CancelledError:
        if late:
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns the body that was read, and then what the real one does: the client's leaving."""
    given = False

    async def replay() -> Event:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
