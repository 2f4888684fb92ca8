"""The OpenAPI document: what FastAPI knows of the routes, and what it cannot know.

`server.py` adds it to the app; `python -m polydev.controller.api` prints it without a controller.
Operation ids are the names of the routes' functions in camel case, so that generated
clients have methods like `listMachines`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from polydev.controller.api.http.error_responses import PROBLEM_SCHEMA
from polydev.controller.api.http.services import CSRF_HEADER

_ABOUT = """\
A private microVM per person for AI coding CLIs, and a way to log them in there.

A request that starts something answers 202; what became of it is told by the thing itself: wait for
it with `?after=<version>&wait=<seconds>`, or listen to its events. What went wrong is a problem
document (RFC 9457) with a stable `code`.

Send `Authorization: Bearer <token>`, or sign in and send the cookie, with `X-CSRF-Token` when
something is to change.
"""
_TAGS = {
    "general": "What this is, and how it is",
    "connect sessions": "Logging a CLI in",
    "machines": "The person's machines",
    "chat": "Talking to a CLI in the person's CLI machine",
    "account": "Signing up and in, password, API tokens",
    "credentials": "What the CLIs are logged in with",
    "events": "What of the person's changes, as it happens",
    "administration": "Hosts, people, everybody's machines and sessions; administrators only",
}
_CHANGING = ("post", "put", "patch", "delete")


def describe(api: FastAPI) -> None:
    """Have the app answer `/openapi.json` with the whole document."""

    def whole() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _document(api)
        return api.openapi_schema

    api.openapi = whole  # type: ignore[method-assign]


def _document(api: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=api.title,
        version=api.version,
        summary="The API of a Polydev controller",
        description=_ABOUT,
        routes=api.routes,
        tags=[{"name": name, "description": words} for name, words in _TAGS.items()],
    )
    parts = found.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
    parts.setdefault("securitySchemes", {})["csrf"] = {
        "type": "apiKey",
        "in": "header",
        "name": CSRF_HEADER,
        "description": "The token that signing in answered with; besides the cookie, for changes",
    }
    for methods in found["paths"].values():
        for method, operation in methods.items():
            if method in _CHANGING:
                for way in operation.get("security", []):
                    if "signIn" in way:
                        way["csrf"] = []
    return found
