"""What the model endpoints of all providers share: who may ask, and streaming an answer.

The real CLIs call them with the access token of their login, or with an API key; without a live one
they get 401. `anthropic.py`, `openai.py` and `google.py` use it, each for its provider's API.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web

from polydev.testing.fake_providers.identity.accounts import Account, account_with_key
from polydev.testing.fake_providers.identity.grants import Grants


class Event(NamedTuple):
    """One server-sent event; `name` may be empty. `pause_s` is waited after it."""

    name: str
    data: dict[str, Any]
    pause_s: float | None = None


@dataclass
class Model:
    """`pace_s` is the usual pause between two events, in seconds."""

    grants: Grants
    pace_s: float = 0.02

    def account(self, request: web.Request, provider: str) -> Account | None:
        """Whose token or API key the request carries; None if it is not one that lives here."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = self.grants.account_of(token, provider) if scheme == "Bearer" else None
        keys = [token, *(request.headers.get(it, "") for it in ("x-api-key", "x-goog-api-key"))]
        keys.append(request.query.get("key", ""))
        return account or next(filter(None, (account_with_key(it, provider) for it in keys)), None)

    async def stream(self, request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
        """Send the events as they come."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # A CLI that has read the last event hangs up without waiting for the end of the stream.
        with contextlib.suppress(ConnectionResetError):
            async for event in self._paced(events):
                name = f"event: {event.name}\n" if event.name else ""
                await response.write(f"{name}data: {json.dumps(event.data)}\n\n".encode())
            await response.write_eof()
        return response

    async def _paced(self, events: Iterable[Event]) -> AsyncIterator[Event]:
        for event in events:
            yield event
            # A model takes its time too.
            await asyncio.sleep(self.pace_s if event.pause_s is None else event.pause_s)


async def json_object(request: web.Request) -> dict[str, Any]:
    """The body. Raises HTTPBadRequest if it is no JSON object."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return body


def refusal(kind: type[web.HTTPException], body: dict[str, Any]) -> web.HTTPException:
    """An error with a JSON body."""
    return kind(text=json.dumps(body), content_type="application/json")
