"""The one shape of every error: OpenAI's, whatever went wrong and wherever."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from nutshell.infer.grammar import GrammarError
from nutshell.serve.worker import StoppedError


class APIError(Exception):
    """An answer other than 200, in the API's own shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}
        self.headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def not_ready(why: str, retry_after_seconds: int) -> APIError:
    """A 503 while a server loads or shuts down."""
    message = f"the server is not ready: {why}"
    return APIError(503, message, type="server_error", code="not_ready", retry_after_seconds=retry_after_seconds)


def as_api_error(error: Exception) -> APIError | None:
    """What a client is told of an error; None for one that is a failure of ours, and belongs in the log."""
    match error:
        case APIError():
            return error
        case ValidationError() | RequestValidationError():
            return _validation_error(error)
        case GrammarError():
            return APIError(400, str(error), param="response_format")
        case StoppedError():
            return not_ready("shutting down", 10)
    return None


async def answer_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of what `as_api_error` knows."""
    told = as_api_error(error)
    assert told is not None
    return told.response()


async def answer_http_error(request: Request, error: Any) -> Response:
    """FastAPI's handler of Starlette's own errors: no such path, no such method."""
    if error.status_code == 404:
        path = request.url.path
        below = f"/v1{path}" in {getattr(route, "path", "") for route in request.app.routes}
        hint = "; the API lies below /v1, so base_url ends with it" if below else ""
        return APIError(404, f"there is nothing at {path[:100]!r}{hint}", code="not_found").response()
    response = APIError(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: answer_http_error,
    **dict.fromkeys((APIError, ValidationError, RequestValidationError, GrammarError, StoppedError), answer_error),
}
"""For FastAPI. Whatever is not here is answered by the guard, with a 500."""


def _validation_error(errors: ValidationError | RequestValidationError) -> APIError:
    """The first of pydantic's errors as a 400 that names the field and what it received."""
    error: dict[str, Any] = {**errors.errors()[0]}
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "it cannot be parsed")
        return APIError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    param = ""
    for step in error["loc"]:
        if isinstance(step, int):
            param += f"[{step}]"
        elif step == "query":
            continue  # where FastAPI found it
        elif step in ("str", "float", "int", "bool", "[key]") or step.startswith("list["):
            break  # pydantic's name for a member of a union, no field
        else:
            param += f".{step}" if param else step
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "this field is required" if param else "a JSON object is expected as the body"
    elif "value_error" not in error["type"] and not isinstance(error.get("input"), (dict, list)):
        message += f"; received {shortened(error.get('input'))}"
    return APIError(400, f"{param}: {message}" if param else message, param=param or None, code=error["type"])


def shortened(value: Any) -> str:
    """A value that a client sent, for a message about it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number too large to print"
    return text if len(text) <= 60 else text[:57] + "..."
