"""Requests that may be sent twice and are done once: the header `Idempotency-Key`.

Routers whose POSTs may be repeated have `route_class=Repeatable`. The first request with a key
takes it; its answer, if it succeeded, is given again to every later one that is the same. Answers
that hold a secret are never kept, so routes with such answers are not of this class.

A key belongs to a person. It is kept for a day; a controller that died over a request leaves its
key to whoever asks again after `_GIVEN_UP_AFTER`.
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
from polydev.controller.api.http.error_responses import problem_responses
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
    "description": "A text of the client's own, new for each thing it wants done. Sent again with "
    "the same request within 24 hours, it is answered as it was then, with "
    f"`{REPLAYED}: true`; with another request, or while the first still runs, with 409.",
    "schema": {"type": "string", "pattern": _KEY},
    "example": "3f6c1d0e-make-my-machine",
}

_TOO_MANY_KEYS = {429: problem_responses(TooManyRequests)[429]}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(APIRoute):
    """A route whose POST heeds `Idempotency-Key`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        if "POST" in (how.get("methods") or ()):
            extra = how.get("openapi_extra") or {}
            if _PARAMETER not in extra.get("parameters", []):
                extra = {**extra, "parameters": [*extra.get("parameters", []), _PARAMETER]}
            how["openapi_extra"] = extra
            how["responses"] = _TOO_MANY_KEYS | (how.get("responses") or {})
        super().__init__(path, endpoint, **how)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or request.method != "POST":
                return await handle(request)
            if re.match(_KEY, key) is None:
                raise BadRequest(f"{HEADER} has between 1 and 255 visible ASCII characters")
            caller = await authenticate(request)
            return await _run_once(get_services(request).database, caller, key, request, handle)

        return once


def stable_id(request: Request) -> uuid.UUID:
    """A new id; for a request with a key the same when it is done again, because the controller
    died that did it first."""
    found: uuid.UUID | None = getattr(request.state, "repeated_id", None)
    return found or uuid.uuid4()


async def _run_once(
    database: Database, caller: Caller, key: str, request: Request, handle: Handler
) -> Response:
    at = now()
    asked = idempotency_keys.KeyClaim(caller.user_id, key, await _digest(request), at, at)
    async with database.write(caller.user_id) as connection:
        await idempotency_keys.prune(connection, at - idempotency_keys.RETENTION, caller.user_id)
        taken = await idempotency_keys.take(connection, asked, given_up=at - _ABANDONED_AFTER)
    if isinstance(taken, idempotency_keys.PreviousRequest):
        return _replay(taken, asked)
    subject = f"{taken.user_id}/{taken.key}/{taken.first_at.isoformat()}"
    request.state.repeated_id = uuid.uuid5(_NAMESPACE, subject)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await handle(request)
    except BaseException:
        await asyncio.shield(_release(database, taken))
        raise
    if 200 <= answer.status_code < 300:
        await asyncio.shield(_store(database, taken, answer))
    else:
        await asyncio.shield(_release(database, taken))
    return answer


def _replay(before: idempotency_keys.PreviousRequest, taken: idempotency_keys.KeyClaim) -> Response:
    """What the first request was answered. Raises IdempotencyConflict."""
    if before.request_hash != taken.request_hash:
        raise IdempotencyConflict(
            f"This {HEADER} came with another request before", hint="Use a new key"
        )
    if before.status is None:
        raise IdempotencyConflict(
            f"The first request with this {HEADER} still runs", hint="Ask again in a moment"
        )
    return Response(before.body, before.status, {REPLAYED: "true"}, "application/json")


async def _store(database: Database, taken: idempotency_keys.KeyClaim, answer: Response) -> None:
    body = bytes(answer.body).decode()
    async with database.write(taken.user_id) as connection:
        await idempotency_keys.store_response(connection, taken, answer.status_code, body)


async def _release(database: Database, taken: idempotency_keys.KeyClaim) -> None:
    async with database.write(taken.user_id) as connection:
        await idempotency_keys.release(connection, taken)


async def _digest(request: Request) -> str:
    asked = hashlib.sha256()
    for part in (request.method, request.url.path, request.url.query):
        asked.update(part.encode() + b"\n")
    asked.update(await request.body())
    return asked.hexdigest()
