"""The HTTP application: the OpenAI-compatible routes, health, metrics and the web page."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from nutshell.serve import feedback, runs
from nutshell.serve.api import ChatRequest, DetokenizeRequest, TextRequest, TokenizeRequest
from nutshell.serve.chat import answer_chat
from nutshell.serve.errors import HANDLERS
from nutshell.serve.guard import Guard
from nutshell.serve.models import Models
from nutshell.serve.offers import Offer
from nutshell.serve.service import Service
from nutshell.serve.text import answer_texts
from nutshell.serve.tokens import detokenize, tokenize, tokenizer_info

WEB_FOLDER = Path(__file__).parent / "web"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def create_app(
    models: Models,
    *,
    api_key: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    cors_origins: Sequence[str] = (),
    feedback_store: feedback.FeedbackStore | None = None,
    ignore_tools: bool = False,
) -> FastAPI:
    """The application for these models; /health says "loading" until the first of them is loaded.

    With `ignore_tools` functions that a client offers are passed over.
    """
    service = Service(models, ignore_tools=ignore_tools)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="nutshell", docs_url=None, redoc_url=None, lifespan=lifespan, exception_handlers=HANDLERS)
    app.state.service = service
    static_paths = _add_page(app)
    _add_routes(app, service)
    feedback.add_routes(app, feedback_store, service)
    runs.add_routes(app, Path(models.folder) if models.folder else None)

    for route in [route for route in app.routes if isinstance(route, APIRoute) and route.methods == {"GET"}]:
        app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)

    known = {*static_paths, *(route.path for route in app.routes if isinstance(route, APIRoute))}

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
    )
    if cors_origins:  # outermost: a browser asks for leave without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["x-request-id"],
        )  # fmt: skip
    return app


@cache
def _body(shape: type[BaseModel]) -> dict[str, Any]:
    """What a route reads, for /openapi.json: FastAPI itself would parse it on the event loop."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(shape.model_json_schema())}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without `$defs`, for a place where references to them would lead nowhere."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolve(definitions[value["$ref"].rsplit("/", 1)[1]])
        return {key: resolve(one) for key, one in value.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _add_routes(app: FastAPI, service: Service) -> None:
    def described(offer: Offer) -> dict[str, Any]:
        loaded = service.models.loaded.get(offer.key)
        context = loaded.context if loaded else offer.context
        return {
            "id": offer.id, "object": "model", "created": offer.created, "owned_by": "nutshell",
            "stage": offer.stage, "step": offer.step, "kind": offer.kind, "loaded": loaded is not None,
            **({} if context is None else {"context": context, "max_model_len": context}),
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every model that can be asked for, the default first."""
        return {"object": "list", "data": [described(offer) for offer in await service.models.list()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return described(await service.models.find(name))

    @app.get("/health")
    async def health() -> JSONResponse:
        status = service.status()
        if status == "ok":
            return JSONResponse({"status": status})
        said = {"status": status, **({"reason": service.failure()} if status == "failed" else {})}
        return JSONResponse(said, 503, {"Retry-After": "2"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; as server-sent events when `stream` is true. The body is a `ChatRequest`."""
        return await answer_chat(service, request)

    @app.post("/v1/completions", openapi_extra=_body(TextRequest))
    async def completions(request: Request) -> Response:
        """Continue texts as they are, and score them (`echo` with `logprobs`). The body is a `TextRequest`."""
        return await answer_texts(service, request)

    @app.post("/tokenize", openapi_extra=_body(TokenizeRequest))
    async def to_tokens(request: Request) -> dict[str, Any]:
        """Token ids of a text or a conversation. The body is a `TokenizeRequest`."""
        return await tokenize(service, request)

    @app.post("/detokenize", openapi_extra=_body(DetokenizeRequest))
    async def to_text(request: Request) -> dict[str, Any]:
        """The text of token ids. The body is a `DetokenizeRequest`."""
        return await detokenize(service, request)

    @app.get("/tokenizer_info")
    async def about_tokenizer(model: str | None = None) -> dict[str, Any]:
        return await tokenizer_info(service, model)


def _add_page(app: FastAPI) -> list[str]:
    """Serve each file of the page from memory; returns their paths, which need no API key."""
    paths = []
    for file in sorted(WEB_FOLDER.iterdir()):
        if file.suffix not in MEDIA_TYPES:
            continue
        path = {"index.html": "/", "runs.html": "/runs"}.get(file.name, f"/web/{file.name}")
        app.add_route(path, _static(file))
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
