"""Document the responses of each route in OpenAPI; errors from their classes.

Each route passes `responses=problem_responses(...)` with exactly the errors that it can raise. The
contract test checks every answer against them, down to the problem's code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from polydev.controller.api.http.problem_documents import PROBLEM_JSON
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
    "description": "A problem document (RFC 9457). `code` is stable; the texts are for humans.",
    "properties": {
        "type": {"type": "string", "description": "`urn:polydev:problem:<code>`"},
        "title": {"type": "string", "description": "The HTTP status as text"},
        "status": {"type": "integer", "description": "The HTTP status"},
        "code": {"type": "string", "description": "Error code; stable"},
        "detail": {"type": "string", "description": "What happened, and to which resource"},
        "hint": {"type": "string", "description": "What to do about it; can be empty"},
    },
    "required": ["type", "title", "status", "code", "detail", "hint"],
}
"""The schema `#/components/schemas/Problem` of the document."""

# Every route can raise these: wrong Host header, bad or too large request, database down.
_COMMON_ERRORS = (NotAllowed, BadRequest, TooLarge, DatabaseUnavailable)

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before the next try",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    HTTPStatus.UNAUTHORIZED: {
        "WWW-Authenticate": {
            "description": "The authentication scheme to use",
            "schema": {"type": "string", "examples": ["Bearer"]},
        }
    },
    HTTPStatus.TOO_MANY_REQUESTS: _RETRY_AFTER,
    HTTPStatus.SERVICE_UNAVAILABLE: _RETRY_AFTER,
}


def problem_responses(*errors: type[PolydevError]) -> Responses:
    """Return `responses=` of an authenticated route that can raise these `errors`.

    Adds NotSignedIn, IssuerUnreachable (keys of a Supabase project) and the errors that
    `public_problem_responses` adds.
    """
    return public_problem_responses(NotSignedIn, IssuerUnreachable, *errors)


def public_problem_responses(*errors: type[PolydevError]) -> Responses:
    """Return `responses=` of a public route that can raise these `errors`.

    Adds NotAllowed, BadRequest, TooLarge and DatabaseUnavailable.
    """
    by_status: dict[int, list[type[PolydevError]]] = {}
    all_errors: tuple[type[PolydevError], ...] = (*_COMMON_ERRORS, *errors)
    for kind in dict.fromkeys(all_errors):
        by_status.setdefault(kind.http_status, []).append(kind)
    return {status: _response(status, kinds) for status, kinds in sorted(by_status.items())}


def media_response(
    media_type: str, schema: dict[str, Any] | None = None, **about: Any
) -> Responses:
    """Return the `responses=` part of a 200 without JSON, for `|`."""
    content = {media_type: {"schema": schema or {"type": "string"}, **about}}
    return {200: {"description": "The content", "content": content}}


def sse_response(model: str, *names: str) -> Responses:
    """Return `responses=` of server-sent events that carry a model as JSON.

    The schema describes one event, as in OpenAPI 3.2.
    """
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{model}"},
    }
    event = {"type": "object", "properties": {"event": {"enum": list(names)}, "data": data}}
    return media_response("text/event-stream", event | {"required": ["event", "data"]})


def paged_response() -> Responses:
    """Return the `responses=` part of a paginated list, for `|`."""
    link = {
        "description": 'The next page, as `<...>; rel="next"`; absent on the last page',
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
        code: {"summary": summary, "value": _example(status, code, summary)}
        for code, summary in codes.items()
    }
    answer: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {summary}" for code, summary in codes.items()),
        "content": {PROBLEM_JSON: {"schema": schema, "examples": examples}},
    }
    if status in _HEADERS:
        answer["headers"] = _HEADERS[status]
    return answer


def _summary(kind: type[PolydevError]) -> str:
    """Return the first paragraph of the class's docstring."""
    first, _, _ = (inspect.getdoc(kind) or kind.code).partition("\n\n")
    return " ".join(first.split()).rstrip(".")


def _example(status: int, code: str, summary: str) -> dict[str, Any]:
    return {
        "type": f"urn:polydev:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": summary,
        "hint": "",
    }
