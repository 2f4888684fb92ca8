"""What a route may answer besides success, as OpenAPI tells it: made from the error classes.

Every router gives its routes `responses=answers(...)` with the errors that they can raise, and no
others: the contract test holds each answer against them, down to the problem's code. It must not
know what raises an error, nor when.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from polydev.controller.api.http.errors import PROBLEM_JSON, status_for
from polydev.shared.errors import (
    BadRequest,
    DatabaseUnavailable,
    IssuerUnreachable,
    NotAllowed,
    NotSignedIn,
    PolydevError,
    TooLarge,
)

Responses = dict[int | str, dict[str, Any]]

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "What went wrong (RFC 9457). `code` is stable; the words are for people.",
    "properties": {
        "type": {"type": "string", "description": "`urn:polydev:problem:<code>`"},
        "title": {"type": "string", "description": "The status in words"},
        "status": {"type": "integer", "description": "The HTTP status"},
        "code": {"type": "string", "description": "What kind of problem; stable"},
        "detail": {"type": "string", "description": "What happened, and to what"},
        "hint": {"type": "string", "description": "What to do about it; may be empty"},
    },
    "required": ["type", "title", "status", "code", "detail", "hint"],
}
"""The document's `#/components/schemas/Problem`."""

# A name that is not ours; malformed or too large requests; a database that is away.
_COMMON_ERRORS = (NotAllowed, BadRequest, TooLarge, DatabaseUnavailable)

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which it may be asked again",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    HTTPStatus.UNAUTHORIZED: {
        "WWW-Authenticate": {
            "description": "How to prove who one is",
            "schema": {"type": "string", "examples": ["Bearer"]},
        }
    },
    HTTPStatus.TOO_MANY_REQUESTS: _RETRY_AFTER,
    HTTPStatus.SERVICE_UNAVAILABLE: _RETRY_AFTER,
}


def problem_responses(*errors: type[PolydevError]) -> Responses:
    """`responses=` of a route for people who are signed in, which may raise these `errors`.

    NotSignedIn, IssuerUnreachable (a Supabase project's keys) and what `open_answers` adds go
    without saying.
    """
    return public_problem_responses(NotSignedIn, IssuerUnreachable, *errors)


def public_problem_responses(*errors: type[PolydevError]) -> Responses:
    """`responses=` of a route that anybody may ask, which may raise these `errors`.

    NotAllowed, BadRequest, TooLarge and DatabaseUnavailable go without saying.
    """
    by_status: dict[int, list[type[PolydevError]]] = {}
    every: tuple[type[PolydevError], ...] = (*_COMMON_ERRORS, *errors)
    for kind in dict.fromkeys(every):
        by_status.setdefault(status_for(kind), []).append(kind)
    return {status: _response(status, kinds) for status, kinds in sorted(by_status.items())}


def media_response(
    media_type: str, schema: dict[str, Any] | None = None, **about: Any
) -> Responses:
    """`responses=` of a 200 that is not JSON: `answers(...) | of_type("text/event-stream")`."""
    content = {media_type: {"schema": schema or {"type": "string"}, **about}}
    return {200: {"description": "As it comes", "content": content}}


def sse_response(model: str, *names: str) -> Responses:
    """`responses=` of a 200 that is server-sent events, each of which carries that model as JSON.

    The schema is of one event, as OpenAPI 3.2 has it.
    """
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{model}"},
    }
    event = {"type": "object", "properties": {"event": {"enum": list(names)}, "data": data}}
    return media_response("text/event-stream", event | {"required": ["event", "data"]})


def paged_response() -> Responses:
    """`responses=` of a listing in pages, besides: `answers(...) | listing()`."""
    link = {
        "description": 'Where the listing goes on, as `<...>; rel="next"`; absent on the last page',
        "schema": {"type": "string"},
    }
    return {200: {"headers": {"Link": link}}}


def _response(status: int, kinds: Iterable[type[PolydevError]]) -> dict[str, Any]:
    codes = {kind.code: _summary(kind) for kind in kinds}
    schema = {
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "properties": {"status": {"const": status}, "code": {"enum": list(codes)}},
    }
    examples = {
        code: {"summary": words, "value": _example(status, code, words)}
        for code, words in codes.items()
    }
    answer: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {words}" for code, words in codes.items()),
        "content": {PROBLEM_JSON: {"schema": schema, "examples": examples}},
    }
    if status in _HEADERS:
        answer["headers"] = _HEADERS[status]
    return answer


def _summary(kind: type[PolydevError]) -> str:
    """The first sentence of the class's docstring."""
    first, _, _ = (inspect.getdoc(kind) or kind.code).partition("\n\n")
    return " ".join(first.split()).rstrip(".")


def _example(status: int, code: str, words: str) -> dict[str, Any]:
    return {
        "type": f"urn:polydev:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": words,
        "hint": "",
    }
