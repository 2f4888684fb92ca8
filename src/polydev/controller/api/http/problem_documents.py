"""Answer errors with problem documents (RFC 9457).

The class of an error decides the status. Unexpected exceptions are answered without their text,
since it may hold a secret.
"""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from polydev.shared.errors import BadRequest, PolydevError, TooManyRequests, Unavailable
from polydev.shared.host_protocol import Problem

log = logging.getLogger("polydev.controller.api")

PROBLEM_JSON = "application/problem+json"
_RETRY_AFTER_S = 5
"""The Retry-After of errors that are `Unavailable`."""
_MAX_NAME = 200
_FRAMES = 6


def install(app: FastAPI) -> None:
    """Make the app answer errors with problem documents."""
    app.add_exception_handler(PolydevError, _polydev_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(UnicodeEncodeError, _unencodable_text)
    app.add_exception_handler(Exception, _unexpected)


def problem_response(error: PolydevError) -> JSONResponse:
    """Return the response for an error."""
    response = _response(error.http_status, error.code, error.message, error.hint)
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(max(1, error.retry_after_s))
    elif isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return response


def to_problem(error: PolydevError) -> Problem:
    """Return the error as streams carry it."""
    return Problem(code=error.code, message=error.message, hint=error.hint)


async def _polydev_error(request: Request, error: Exception) -> JSONResponse:
    return problem_response(cast(PolydevError, error))


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    first = cast(RequestValidationError, error).errors()[0]
    where = _printable(".".join(str(part) for part in first["loc"]))
    text = f"Invalid request: {where}: {first['msg']}"
    return problem_response(BadRequest(text, hint="See /openapi.json"))


def _printable(name: str) -> str:
    """Return a name from the request, shortened and in ASCII."""
    return name[:_MAX_NAME].encode("ascii", "backslashreplace").decode()


async def _unencodable_text(request: Request, error: Exception) -> JSONResponse:
    """Refuse a lone surrogate, which JSON can name but text cannot hold."""
    return problem_response(BadRequest("The request contains invalid Unicode"))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    exception = cast(HTTPException, error)
    status = HTTPStatus(exception.status_code)
    if isinstance(exception.__cause__, PolydevError):  # raised while reading the body
        return problem_response(exception.__cause__)
    if status == HTTPStatus.BAD_REQUEST:  # the body is not JSON, or not text
        return problem_response(BadRequest("The request body is not valid JSON"))
    code = status.phrase.lower().replace(" ", "-")
    response = _response(exception.status_code, code, status.description or status.phrase, "")
    response.headers.update(exception.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    where = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-_FRAMES:])
    )
    kind = type(error).__name__
    route = getattr(request.scope.get("route"), "path", "none")  # the path itself may hold anything
    log.error("%s %s failed: %s at %s", request.method, route, kind, where)
    return _response(500, "internal", "Internal error; see the controller's log", "")


def _response(status: int, code: str, detail: str, hint: str) -> JSONResponse:
    body: dict[str, Any] = {
        "type": f"urn:polydev:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail.encode(errors="replace").decode(),
        "hint": hint,
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(body, status, headers, media_type=PROBLEM_JSON)
