"""The answers when something fails, in the form of OpenAI's API."""

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from nanogpt_lite.device.memory import is_out_of_memory
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.http_api.answers import error_body
from nanogpt_lite.http_api.fields import FieldError
from nanogpt_lite.server.generation_queue import QueueClosedError, QueueFullError
from nanogpt_lite.server.run_catalog import UnknownModelError
from nanogpt_lite.server.trainings import TrainingBusyError

RETRY_AFTER = 2  # seconds, for a client that was refused


def describe_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body that say what went wrong."""
    if isinstance(error, UnknownModelError):
        return 404, error_body(str(error), param="model")
    if isinstance(error, UserError):
        return 400, error_body(str(error), param=error.field if isinstance(error, FieldError) else None)
    if isinstance(error, ExternalError):
        return 503, error_body(str(error), "server_error")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "POST")
        return 405, error_body(f"this path cannot be asked in this way; send {allowed}")
    if isinstance(error, HTTPException):
        kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
        return error.status_code, error_body(error.detail, kind)
    if is_out_of_memory(error):
        return 503, error_body("out of memory; ask for fewer texts, or for a smaller network", "server_error")
    return 500, error_body("the server failed; its log says why", "server_error")


async def _error(_: Request, error: Exception) -> Response:
    status, body = describe_error(error)
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(body, status, headers)


async def _queue_full(_: Request, __: Exception) -> Response:
    body = error_body("too many requests wait already; ask again later", "rate_limit_error")
    return JSONResponse(body, 429, {"Retry-After": str(RETRY_AFTER)})


async def _training_busy(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "conflict_error"), 409)


async def _queue_closed(_: Request, __: Exception) -> Response:
    return JSONResponse(error_body("the server has stopped", "server_error"), 503)


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's number for it


HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    UserError: _error,
    ExternalError: _error,
    QueueFullError: _queue_full,
    QueueClosedError: _queue_closed,
    TrainingBusyError: _training_busy,
    HTTPException: _error,
    ClientDisconnect: _client_gone,
    MemoryError: _error,
    Exception: _error,
}
"""The handlers of a Starlette application. After the one for `Exception`, the error is raised again and so logged."""
