"""Build the OpenAPI document, with the parts that FastAPI cannot know.

Operation ids are the names of the route functions in camel case, so that generated clients have
methods such as `listMachines`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from polydev.controller.api.http.openapi_responses import PROBLEM_SCHEMA
from polydev.controller.api.http.services import CSRF_HEADER

_ABOUT = """\
Polydev gives each user private microVMs for AI coding CLIs, and logs the CLIs in there.

A request that starts work answers 202. Follow the work by polling the resource with
`?after=<version>&wait=<seconds>`, or by reading its event stream. Errors are problem documents
(RFC 9457) with a stable `code`.

Authenticate with `Authorization: Bearer <token>`, or sign in and send the cookie; requests that
change something then also need the header `X-CSRF-Token`.

Lists are JSON arrays in pages: pass `?limit=` and `?cursor=`, and follow `Link: <...>; rel="next"`.
"""
_TAGS = {
    "general": "Health, providers, metrics and checks",
    "connect sessions": "Log a CLI in",
    "machines": "Your machines",
    "chat": "Talk to a CLI in your CLI machine",
    "account": "Sign up, sign in, password, API tokens",
    "credentials": "The credentials that your CLIs are logged in with",
    "events": "Changes of your resources, as they happen",
    "administration": "Hosts, users, and everything that users have; administrators only",
}
_CHANGING = ("post", "put", "patch", "delete")


def describe(api: FastAPI) -> None:
    """Make the app serve the whole document at `/openapi.json`."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _document(api)
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _document(api: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=api.title,
        version=api.version,
        summary="The API of a Polydev controller",
        description=_ABOUT,
        routes=api.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    parts = found.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
    parts.setdefault("securitySchemes", {})["csrf"] = {
        "type": "apiKey",
        "in": "header",
        "name": CSRF_HEADER,
        "description": "The CSRF token from the sign-in; needed beside the cookie for every change",
    }
    for methods in found["paths"].values():
        for method, operation in methods.items():
            if method in _CHANGING:
                for way in operation.get("security", []):
                    if "signIn" in way:
                        way["csrf"] = []
    return found
