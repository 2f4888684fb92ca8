"""The model endpoints of both providers: a deterministic answer that proves it saw the question.

The real CLIs call these with the access token of their login; without a live one they get 401.
Also here: the account endpoints (profile, roles, accounts/check) that the same token opens.
`server.py` puts the routes under the providers' host names.
"""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from .accounts import Account
from .grants import Grants

QUOTED_CHARACTERS = 400
_SYSTEM_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)

Event = tuple[str, dict[str, Any]]


@dataclass
class Model:
    """Handlers of the calls that need an access token. `pace_s` is the pause between deltas."""

    grants: Grants
    pace_s: float = 0.02

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages of Anthropic."""
        self._account(request, "anthropic")
        body = await _json_object(request)
        answer = answer_to(last_user_text(body.get("messages")))
        message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "standin"),
            "content": [{"type": "text", "text": answer}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": len(answer.split())},
        }
        if not body.get("stream"):
            return web.json_response(message)
        return await self._stream(request, _anthropic_events(message, answer))

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        self._account(request, "anthropic")
        return web.json_response({"input_tokens": 10})

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """POST /backend-api/codex/responses of ChatGPT."""
        self._account(request, "openai")
        body = await _json_object(request)
        answer = answer_to(last_user_text(body.get("input")))
        return await self._stream(request, _openai_events(answer))

    async def no_websocket(self, request: web.Request) -> web.StreamResponse:
        """Codex first asks for a websocket; 426 sends it to plain streaming at once."""
        error = {"message": "websockets are not offered"}
        return web.json_response({"error": error}, status=426)

    async def models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [], "models": []})

    async def profile(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request, "anthropic")
        return web.json_response(
            {
                "account": {
                    "uuid": account.identifier("user"),
                    "email": account.email,
                    "display_name": account.name,
                    "full_name": account.name,
                    "has_claude_max": True,
                    "has_claude_pro": False,
                    "created_at": "2025-01-01T00:00:00Z",
                },
                "organization": {
                    "uuid": account.identifier("organization"),
                    "name": account.name,
                    "organization_type": "claude_max",
                    "rate_limit_tier": "default_claude_max_5x",
                    "billing_type": "stripe_subscription",
                    "has_extra_usage_enabled": False,
                },
            }
        )

    async def roles(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request, "anthropic")
        role = {"organization_role": "admin", "workspace_role": None}
        return web.json_response({**role, "organization_name": account.name})

    async def accounts_check(self, request: web.Request) -> web.StreamResponse:
        account_id = self._account(request, "openai").identifier("account")
        account = {
            "id": account_id,
            "account_id": account_id,
            "name": "Personal",
            "plan_type": "plus",
            "structure": "personal",
            "workspace_backend_origin": "NO_CONSTRAINT",
            "account_routing_override": "NO_CONSTRAINT",
            "is_deactivated": False,
            "can_access_with_session": True,
            "profile_picture_url": None,
            "sso_connection_name": None,
            "is_fedramp_compliant_workspace": False,
        }
        order = {"account_ordering": [account_id], "default_account_id": account_id}
        return web.json_response({"accounts": [account], **order})

    def _account(self, request: web.Request, provider: str) -> Account:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = self.grants.account_of(token, provider) if scheme == "Bearer" else None
        if account is None:
            raise _unauthorized(provider)
        return account

    async def _stream(self, request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # A CLI that has read the last event hangs up without waiting for the end of the stream.
        with contextlib.suppress(ConnectionResetError):
            async for name, data in self._paced(events):
                await response.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            await response.write_eof()
        return response

    async def _paced(self, events: Iterable[Event]) -> AsyncIterator[Event]:
        for event in events:
            yield event
            await asyncio.sleep(self.pace_s)  # a model takes its time too


def answer_to(question: str) -> str:
    """One sentence that quotes the question, so that a test can tell it arrived whole."""
    quoted = " ".join(question.split())[:QUOTED_CHARACTERS]
    return f"The stand-in model heard you say: {quoted}"


def last_user_text(turns: object) -> str:
    """The person's own last words among messages (Anthropic) or input items (OpenAI).

    What the CLIs add around them (system reminders, environment) is left out.
    """
    for turn in reversed(turns) if isinstance(turns, list) else ():
        if not isinstance(turn, dict) or turn.get("role") != "user":
            continue
        content = turn.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        own = [_SYSTEM_REMINDER.sub("", text).strip() for text in texts if isinstance(text, str)]
        if any(own):
            return next(text for text in reversed(own) if text)
    return ""


def _words(answer: str) -> list[str]:
    return re.findall(r"\S+\s*", answer)


def _anthropic_events(message: dict[str, Any], answer: str) -> Iterable[Event]:
    opened = {**message, "content": [], "stop_reason": None}
    block = {"type": "text", "text": ""}
    yield "message_start", {"type": "message_start", "message": opened}
    yield (
        "content_block_start",
        {"type": "content_block_start", "index": 0, "content_block": block},
    )
    for word in _words(answer):
        delta = {"type": "text_delta", "text": word}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    yield "message_delta", {"type": "message_delta", "delta": stop, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


def _openai_events(answer: str) -> Iterable[Event]:
    response = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "output": []}
    text = {"type": "output_text", "text": answer, "annotations": []}
    item_id = f"msg_{secrets.token_hex(12)}"
    item = {"type": "message", "id": item_id, "role": "assistant", "content": [text]}
    yield _named("response.created", response={**response, "status": "in_progress"})
    yield _named("response.output_item.added", output_index=0, item={**item, "content": []})
    where = {"item_id": item_id, "output_index": 0, "content_index": 0}
    for word in _words(answer):
        yield _named("response.output_text.delta", **where, delta=word)
    yield _named("response.output_item.done", output_index=0, item=item)
    count = len(answer.split())
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10 + count,
    }
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    yield _named("response.completed", response=done)


def _named(name: str, **data: Any) -> Event:
    return name, {"type": name, **data}


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return body


def _unauthorized(provider: str) -> web.HTTPUnauthorized:
    why = "the access token is not one that lives here"
    if provider == "anthropic":
        error = {"type": "authentication_error", "message": why}
        text = json.dumps({"type": "error", "error": error})
    else:
        error = {"type": "invalid_request_error", "code": "token_expired", "message": why}
        text = json.dumps({"error": error})
    return web.HTTPUnauthorized(text=text, content_type="application/json")
