"""Errors as problem documents (RFC 9457): the only place that knows HTTP statuses.

The error's kind decides the status, its `code` is stable, and its text holds no secret. Errors that
are not ours are answered without their text, which may hold anything.
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

from polydev.shared.errors import (
    BadRequest,
    Conflict,
    Failed,
    Invalid,
    Missing,
    NotSignedIn,
    PolydevError,
    Refused,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from polydev.shared.host_protocol import Problem

log = logging.getLogger("polydev.controller.api")

PROBLEM_JSON = "application/problem+json"
_RETRY_AFTER_S = 5
"""When to ask again what is not to be had now."""
_MAX_NAME = 200
_FRAMES = 6

_STATUSES: tuple[tuple[type[PolydevError], HTTPStatus], ...] = (
    (NotSignedIn, HTTPStatus.UNAUTHORIZED),
    (TooManyRequests, HTTPStatus.TOO_MANY_REQUESTS),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (Invalid, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Refused, HTTPStatus.FORBIDDEN),
    (Missing, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Failed, HTTPStatus.BAD_GATEWAY),
)


def install(app: FastAPI) -> None:
    """Have the app answer with problem documents."""
    app.add_exception_handler(PolydevError, _polydev_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(UnicodeEncodeError, _unencodable_text)
    app.add_exception_handler(Exception, _unexpected)


def status_for(error: type[PolydevError]) -> int:
    """The HTTP status that the error's kind stands for."""
    return next(
        (int(status) for kind, status in _STATUSES if issubclass(error, kind)),
        int(HTTPStatus.INTERNAL_SERVER_ERROR),
    )


def problem_response(error: PolydevError) -> JSONResponse:
    """The answer that says what went wrong."""
    answer = _response(status_for(type(error)), error.code, error.message, error.hint)
    if isinstance(error, TooManyRequests):
        answer.headers["Retry-After"] = str(max(1, error.retry_after_s))
    elif isinstance(error, Unavailable):
        answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return answer


def to_problem(error: PolydevError) -> Problem:
    """The error as streams carry it."""
    return Problem(code=error.code, message=error.message, hint=error.hint)


async def _polydev_error(request: Request, error: Exception) -> JSONResponse:
    return problem_response(cast(PolydevError, error))


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    first = cast(RequestValidationError, error).errors()[0]
    where = _printable(".".join(str(part) for part in first["loc"]))
    words = f"The request is not what the API takes: {where}: {first['msg']}"
    return problem_response(BadRequest(words, hint="/openapi.json says what it takes"))


def _printable(name: str) -> str:
    """A name as the request gave it, bounded, as characters that every answer can hold."""
    return name[:_MAX_NAME].encode("ascii", "backslashreplace").decode()


async def _unencodable_text(request: Request, error: Exception) -> JSONResponse:
    """Half of a surrogate pair, which JSON can name and no text can hold."""
    return problem_response(BadRequest("The request holds characters that are none"))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    raised = cast(HTTPException, error)
    status = HTTPStatus(raised.status_code)
    if isinstance(raised.__cause__, PolydevError):  # raised while the body came
        return problem_response(raised.__cause__)
    if status == HTTPStatus.BAD_REQUEST:  # a body that is no JSON, or not even text
        return problem_response(BadRequest("The request's body cannot be read"))
    code = status.phrase.lower().replace(" ", "-")
    answer = _response(raised.status_code, code, status.description or status.phrase, "")
    answer.headers.update(raised.headers or {})
    return answer


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    where = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-_FRAMES:])
    )
    kind = type(error).__name__
    route = getattr(request.scope.get("route"), "path", "none")  # a path may hold anything
    log.error("%s %s failed: %s at %s", request.method, route, kind, where)
    return _response(500, "internal", "Something unexpected happened; the log says where", "")


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
