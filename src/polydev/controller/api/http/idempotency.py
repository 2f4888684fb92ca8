"""Run a request once even if sent twice (header `Idempotency-Key`).

Routers opt in with `route_class=IdempotentRoute`. The first request with a key claims it; if it
succeeds, its response is stored and replayed to every later identical request. Routes whose
responses hold a secret do not opt in, since a stored response would store the secret.

A key belongs to a user and is stored for a day. If a controller dies during a request, a repeated
request takes the key over after `_ABANDONED_AFTER`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from polydev.controller.access import Caller
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.services import authenticate, get_services
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.system import idempotency_keys
from polydev.shared.domain import now
from polydev.shared.errors import BadRequest, IdempotencyConflict, TooManyRequests

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"

_KEY = r"^[\x21-\x7e]{1,255}$"
_TIMEOUT_S = 60.0
_ABANDONED_AFTER = timedelta(seconds=_TIMEOUT_S + 5)
_NAMESPACE = uuid.UUID("b7c7a0c4-6f0e-4b62-9b39-27a0a2c1d9f4")

_PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "A unique key chosen by the client for this request. The same request with the "
    f"same key gets the first response again within 24 hours, with `{REPLAYED}: true`. Another "
    "request with this key gets 409, and so does a repetition while the first still runs.",
    "schema": {"type": "string", "pattern": _KEY},
    "example": "3f6c1d0e-make-my-machine",
}

_TOO_MANY_KEYS = {429: problem_responses(TooManyRequests)[429]}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(APIRoute):
    """A route whose POST supports `Idempotency-Key`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in (options.get("methods") or ()):
            extra = options.get("openapi_extra") or {}
            if _PARAMETER not in extra.get("parameters", []):
                extra = {**extra, "parameters": [*extra.get("parameters", []), _PARAMETER]}
            options["openapi_extra"] = extra
            options["responses"] = _TOO_MANY_KEYS | (options.get("responses") or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or request.method != "POST":
                return await handle(request)
            if re.match(_KEY, key) is None:
                raise BadRequest(f"{HEADER} must be 1 to 255 visible ASCII characters")
            caller = await authenticate(request)
            return await _run_once(get_services(request).database, caller, key, request, handle)

        return once


def stable_id(request: Request) -> uuid.UUID:
    """Return a new id, the same one if the request runs again.

    A request with a key runs again after a controller died while serving it.
    """
    found: uuid.UUID | None = getattr(request.state, "repeated_id", None)
    return found or uuid.uuid4()


async def _run_once(
    database: Database, caller: Caller, key: str, request: Request, handle: Handler
) -> Response:
    at = now()
    request_claim = idempotency_keys.KeyClaim(caller.user_id, key, await _digest(request), at, at)
    async with database.write(caller.user_id) as connection:
        await idempotency_keys.prune(connection, at - idempotency_keys.RETENTION, caller.user_id)
        claim = await idempotency_keys.take(
            connection, request_claim, abandoned_before=at - _ABANDONED_AFTER
        )
    if isinstance(claim, idempotency_keys.PreviousRequest):
        return _replay(claim, request_claim)
    subject = f"{claim.user_id}/{claim.key}/{claim.first_at.isoformat()}"
    request.state.repeated_id = uuid.uuid5(_NAMESPACE, subject)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            response = await handle(request)
    except BaseException:
        await asyncio.shield(_release(database, claim))
        raise
    if 200 <= response.status_code < 300:
        await asyncio.shield(_store(database, claim, response))
    else:
        await asyncio.shield(_release(database, claim))
    return response


def _replay(
    previous: idempotency_keys.PreviousRequest, claim: idempotency_keys.KeyClaim
) -> Response:
    """Return the stored response. Raises IdempotencyConflict."""
    if previous.request_hash != claim.request_hash:
        raise IdempotencyConflict(
            f"This {HEADER} was used for another request", hint="Use a new key"
        )
    if previous.status is None:
        raise IdempotencyConflict(
            f"The first request with this {HEADER} still runs", hint="Try again in a moment"
        )
    return Response(previous.body, previous.status, {REPLAYED: "true"}, "application/json")


async def _store(database: Database, claim: idempotency_keys.KeyClaim, response: Response) -> None:
    body = bytes(response.body).decode()
    async with database.write(claim.user_id) as connection:
        await idempotency_keys.store_response(connection, claim, response.status_code, body)


async def _release(database: Database, claim: idempotency_keys.KeyClaim) -> None:
    async with database.write(claim.user_id) as connection:
        await idempotency_keys.release(connection, claim)


async def _digest(request: Request) -> str:
    digest = hashlib.sha256()
    for part in (request.method, request.url.path, request.url.query):
        digest.update(part.encode() + b"\n")
    digest.update(await request.body())
    return digest.hexdigest()
