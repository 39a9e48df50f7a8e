"""The HTTP application: the OpenAI-compatible routes, health, metrics and the web page."""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nutshell.infer.conversation import FittedConversation, fit_conversation
from nutshell.serve import feedback
from nutshell.serve.api import APIError, ChatRequest, validation_error
from nutshell.serve.completions import Completion, EventStream, sse
from nutshell.serve.guard import Guard
from nutshell.serve.prometheus import Metrics
from nutshell.serve.worker import StoppedError, Worker

if TYPE_CHECKING:
    from nutshell.infer.sampling import Sampling

log = logging.getLogger("nutshell.serve")

WEB_FOLDER = Path(__file__).parent / "web"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
RETRY_SECONDS = 1
MAX_OBJECTS = 4096
"""Most objects and lists in a request's JSON, counted before it is parsed."""


class Service:
    """The state behind the routes: the model once it is loaded, its worker, and whether new work is taken."""

    def __init__(self, model_name: str, max_queue: int):
        self.model_name = model_name
        self.max_queue = max_queue
        self.created = int(time.time())
        self.metrics = Metrics()
        self.tok: Any = None
        self.worker: Worker | None = None
        self.context = 0
        self.draining = False
        # Long prompts take a while to tokenize; two threads keep them off the event loop and out of each other's way.
        self.tokenizers = ThreadPoolExecutor(2, thread_name_prefix="nutshell-tokenize")
        self.unpacking = asyncio.Semaphore(1)

    def open(self, engine: Any) -> None:
        """Begin to answer with this engine."""
        worker = Worker(engine, self.max_queue)
        self.metrics.in_flight.set_function(lambda: worker.in_flight)
        self.metrics.waiting.set_function(lambda: max(0, worker.in_flight - engine.max_rows))
        self.tok, self.context, self.worker = engine.tok, engine.context, worker

    def status(self) -> str:
        if self.draining:
            return "shutting down"
        if self.worker is None:
            return "loading"
        return "failed" if self.worker.failed else "ok"

    def ready_worker(self) -> Worker:
        status = self.status()
        if status in ("ok", "failed") and self.worker is not None:  # one that failed is tried again: it may recover
            return self.worker
        wait = {"loading": 2, "shutting down": 10}[status]
        raise APIError(503, f"the server is not ready: {status}", type="server_error", code="not_ready", retry_after_seconds=wait)

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            message = f"the model {name[:100]!r} does not exist here; this server has {self.model_name!r}"
            raise APIError(404, message, param="model", code="model_not_found")

    def close(self) -> None:
        self.draining = True
        if self.worker is not None:
            self.worker.stop()
        self.tokenizers.shutdown(wait=False, cancel_futures=True)


def create_app(
    engine: Any,
    model_name: str,
    *,
    api_key: str | None = None,
    max_queue: int = 64,
    allowed_hosts: Iterable[str] | None = None,
    cors_origins: Sequence[str] = (),
    feedback_store: feedback.FeedbackStore | None = None,
    **limits: Any,
) -> FastAPI:
    """The application for one model.

    `engine` may be None: then health says "loading" until `app.state.service.open(engine)` is called. At most
    `engine.max_rows + max_queue` answers are accepted at a time. `limits` are those of `Guard`.
    """
    service = Service(model_name, max_queue)
    if engine is not None:
        service.open(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="nutshell", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_exception_handler(APIError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(StoppedError, _stopped)
    static_paths = _add_page(app)
    _add_routes(app, service)
    feedback.add_routes(app, feedback_store, service.tokenizers)

    known = {*static_paths, "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/feedback"}

    def observe(path: str, status: int, seconds: float) -> None:
        label = path if path in known else "other"
        service.metrics.requests.labels(label, str(status)).inc()
        service.metrics.request_seconds.labels(label).observe(seconds)

    app.add_middleware(
        Guard,
        api_key=api_key,
        open_paths={*static_paths, "/health"},
        allowed_hosts=allowed_hosts,
        observe=observe,
        **limits,
    )
    if cors_origins:  # outermost: a browser asks for leave without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["x-request-id"],
        )  # fmt: skip
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def described() -> dict[str, Any]:
        model = {"id": service.model_name, "object": "model", "created": service.created, "owned_by": "nutshell"}
        return {**model, "max_model_len": service.context} if service.context else model

    @app.api_route("/v1/models", methods=["GET", "HEAD"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described()]}

    @app.api_route("/v1/models/{name:path}", methods=["GET", "HEAD"])
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return described()

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> JSONResponse:
        status, worker = service.status(), service.worker
        if status == "ok":
            return JSONResponse({"status": status})
        said = {"status": status}
        if status == "failed" and worker is not None:
            said["reason"] = f"{worker.failures} failures in a row, the last one: {worker.last_error!r}"
        return JSONResponse(said, 503, {"Retry-After": "2"})

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; as server-sent events when `stream` is true. The body is a `ChatRequest`."""
        body, messages = await _read(service, await request.body())
        completion = await _begin(service, body, messages, request.scope["nutshell"])
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(_events(service, completion, include_usage), completion.handle.close)
        whole = asyncio.ensure_future(completion.whole())
        gone = asyncio.ensure_future(request.receive())  # the body was read, so what comes next is the client's leaving
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            # Nobody reads what is answered to a client that is gone.
            return JSONResponse(whole.result()) if whole.done() else Response(status_code=499)
        finally:
            completion.handle.close()
            whole.cancel()
            gone.cancel()
            await asyncio.gather(whole, gone, return_exceptions=True)
            _count(service, completion)


async def _read(service: Service, raw: bytes) -> tuple[ChatRequest, list[dict[str, Any]]]:
    """The request and its tidied conversation. Bodies are parsed one at a time, in a thread: they grow twentyfold in memory."""

    def unpack() -> tuple[ChatRequest, list[dict[str, Any]]]:
        if raw.count(b"{") + raw.count(b"[") > MAX_OBJECTS:  # in texts too: count again without them
            outside = b"".join(raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
            if outside.count(b"{") + outside.count(b"[") > MAX_OBJECTS:
                raise APIError(400, f"the body has more than {MAX_OBJECTS} objects; send fewer parts", param="messages")
        body = ChatRequest.model_validate_json(raw)
        return body, body.conversation()

    async with service.unpacking:
        try:
            return await asyncio.get_running_loop().run_in_executor(service.tokenizers, unpack)
        except ValidationError as error:
            raise validation_error(error) from None


async def _begin(service: Service, body: ChatRequest, messages: list[dict[str, Any]], request: dict[str, Any]) -> Completion:
    """Check the request, take its slots, tokenize off the event loop, and hand it to the worker."""
    worker = service.ready_worker()
    service.check_model(body.model)
    choices = body.n or 1
    if choices > worker.capacity:
        raise APIError(400, f"n is {choices}; this server makes at most {worker.capacity} answers", param="n")
    handle = worker.reserve(choices)
    if handle is None:
        service.metrics.rejected.inc()
        message = f"the server is busy: {worker.in_flight} answers run or wait; try again"
        raise APIError(429, message, type="rate_limit_error", code="queue_full", retry_after_seconds=RETRY_SECONDS)
    try:
        handle.request_id = request["id"]
        budget = min(body.wanted_tokens() or service.context, service.context)
        fitted = await _fit(service, messages, budget)
        base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "", "created": int(time.time()), "model": service.model_name}
        prompt_tokens = len(fitted.ids)
        completion = Completion(handle, service.tok, base, prompt_tokens, bool(body.logprobs), request["began"])
        if fitted.dropped:
            completion.note = {"nutshell": {"dropped_messages": fitted.dropped}}
        max_tokens = min(budget, service.context - prompt_tokens)
        handle.submit(fitted.ids, [_sampling(body, max_tokens, index) for index in range(choices)], completion.deliver)
    except BaseException:
        handle.close()
        raise
    service.metrics.prompt_tokens.inc(prompt_tokens)
    return completion


async def _fit(service: Service, messages: list[dict[str, Any]], max_tokens: int) -> FittedConversation:
    """The conversation as a prompt that leaves room for an answer."""
    loop = asyncio.get_running_loop()
    try:
        fitted = await loop.run_in_executor(
            service.tokenizers, fit_conversation, messages, service.tok, service.context, max_tokens
        )
    except ValueError as error:
        raise APIError(400, str(error), param="messages") from error
    if fitted.truncated:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        too_long = "system prompt" if len(str(system)) > len(str(messages[-1]["content"])) else "last message"
        message = f"the {too_long} does not fit this model's context of {service.context} tokens, answer included"
        raise APIError(400, f"{message}; send a shorter one", param="messages", code="context_length_exceeded")
    return fitted


def _sampling(body: ChatRequest, max_tokens: int, index: int) -> "Sampling":
    """With OpenAI's defaults. With a seed, choice 0 is what `n: 1` would give, and choice i has the seed plus i."""
    from nutshell.infer.sampling import Sampling  # imports torch, which the page need not wait for

    top_p = 1.0 if body.top_p is None else body.top_p
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if top_p > 0 else 0.0,
        top_p=top_p if top_p > 0 else 1.0,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias or {},
        seed=None if body.seed is None or body.seed < 0 else (body.seed + index) % 2**63,  # -1 means "any" to clients
        stop=tuple(body.stop or ()),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


async def _events(service: Service, completion: Completion, include_usage: bool) -> AsyncIterator[bytes]:
    try:
        async for chunk in completion.chunks(include_usage):
            yield sse(chunk)
        yield b"data: [DONE]\n\n"
    except Exception:
        log.exception("an answer failed while it was streamed")
        error = APIError(500, "the server failed in the middle of this answer", type="server_error")
        yield sse(error.body)
    finally:
        _count(service, completion)


def _count(service: Service, completion: Completion) -> None:
    service.metrics.completion_tokens.inc(completion.completion_tokens())
    if completion.first_token_seconds is not None:
        service.metrics.first_token_seconds.observe(completion.first_token_seconds)


async def _api_error(request: Request, error: Any) -> Response:
    return error.response()


async def _stopped(request: Request, error: Any) -> Response:
    return APIError(503, str(error), type="server_error", code="not_ready", retry_after_seconds=10).response()


async def _http_error(request: Request, error: Any) -> Response:
    if error.status_code == 404:
        path = request.url.path[:100]
        return APIError(404, f"there is nothing at {path!r}", code="not_found").response()
    response = APIError(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


def _add_page(app: FastAPI) -> list[str]:
    """Serve each file of the page from memory; returns their paths, which need no API key."""
    paths = []
    for file in sorted(WEB_FOLDER.iterdir()):
        if file.suffix not in MEDIA_TYPES:
            continue
        path = "/" if file.name == "index.html" else f"/web/{file.name}"
        app.add_api_route(path, _static(file), methods=["GET", "HEAD"], include_in_schema=False)
        paths.append(path)
    return paths


def _static(file: Path) -> Callable[[Request], Awaitable[Response]]:
    body = file.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {"Cache-Control": "no-cache", "ETag": etag}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=MEDIA_TYPES[file.suffix], headers=headers)

    return page
