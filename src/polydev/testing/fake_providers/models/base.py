"""Shared parts of the model endpoints: authentication and streaming.

The real CLIs send their login's access token, or an API key; without a valid one they get 401.
`anthropic.py`, `openai.py` and `google.py` use it for their APIs.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web

from polydev.testing.fake_providers.identity.accounts import Account, find_account_by_key
from polydev.testing.fake_providers.identity.grants import Grants


class Event(NamedTuple):
    """A server-sent event; `name` may be empty. The stream pauses `pause_s` after it."""

    name: str
    data: dict[str, Any]
    pause_s: float | None = None


@dataclass
class ModelApi:
    """`pace_s` is the default pause between two events."""

    grants: Grants
    pace_s: float = 0.02

    def account(self, request: web.Request, provider: str) -> Account | None:
        """Return the owner of the request's token or API key, or None."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = self.grants.account_of(token, provider) if scheme == "Bearer" else None
        keys = [token, *(request.headers.get(it, "") for it in ("x-api-key", "x-goog-api-key"))]
        keys.append(request.query.get("key", ""))
        return account or next(
            filter(None, (find_account_by_key(it, provider) for it in keys)), None
        )

    async def stream(self, request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
        """Stream events with their pauses."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # A CLI closes the connection after the last event, before the stream ends.
        with contextlib.suppress(ConnectionResetError):
            async for event in self._paced(events):
                name = f"event: {event.name}\n" if event.name else ""
                await response.write(f"{name}data: {json.dumps(event.data)}\n\n".encode())
            await response.write_eof()
        return response

    async def _paced(self, events: Iterable[Event]) -> AsyncIterator[Event]:
        for event in events:
            yield event
            await asyncio.sleep(self.pace_s if event.pause_s is None else event.pause_s)


async def json_object(request: web.Request) -> dict[str, Any]:
    """Parse the body as a JSON object. Raises: HTTPBadRequest."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return body


def refusal(kind: type[web.HTTPException], body: dict[str, Any]) -> web.HTTPException:
    """Return an error with a JSON body."""
    return kind(text=json.dumps(body), content_type="application/json")
