"""`/api/chat/…`: talking to the CLI in the person's machine."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import CHAT_TURNS
from polydev.controller.api.http.error_responses import media_response, problem_responses
from polydev.controller.api.http.errors import to_problem
from polydev.controller.api.http.services import ChatCaller, ServicesDep, permission_check
from polydev.controller.api.schemas.chats import ChatTurn
from polydev.controller.chat import OneShotTurn, TurnEvent
from polydev.shared.domain import Scope
from polydev.shared.errors import NotConnected, NotSignedIn, TooManyRequests, UnknownProvider

router = routers.router(prefix="/api/chat", tags=["chat"])


@router.post(
    "/turn",
    response_class=StreamingResponse,
    responses=problem_responses(UnknownProvider, NotConnected, TooManyRequests)
    | media_response("application/x-ndjson"),
)
async def take_turn(
    asked: ChatTurn, caller: ChatCaller, services: ServicesDep, request: Request
) -> StreamingResponse:
    """One turn: the answer as it comes, one JSON object a line, and `end` as the last."""
    with ExitStack() as held:
        held.enter_context(CHAT_TURNS.acquire(caller))
        opened = await services.one_shot_turns.open(caller.user_id, asked.provider, asked.text)
        told = _lines(opened, permission_check(request, Scope.CHAT))
        return streams.ResourceStream(told, "application/x-ndjson", held.pop_all())


async def _lines(opened: OneShotTurn, may: streams.PermissionCheck) -> AsyncGenerator[str]:
    """The turn as it goes, told as long as the person may have it; going away ends it."""
    asked_at = time.monotonic()
    async with aclosing(opened.events()) as events:
        async for event in events:
            if time.monotonic() - asked_at >= streams.PERMISSION_CHECK_S:
                asked_at = time.monotonic()
                if not await may():
                    yield _line(TurnEvent("error", error=_ended()))
                    yield _line(TurnEvent("end", ok=False))
                    return
            yield _line(event)


def _ended() -> NotSignedIn:
    return NotSignedIn("What this turn was asked with was signed out or revoked")


def _line(event: TurnEvent) -> str:
    return json.dumps(_on_wire(event)) + "\n"


def _on_wire(event: TurnEvent) -> dict[str, Any]:
    if event.error is not None:
        return {"type": "error", **to_problem(event.error).model_dump()}
    if event.type == "end":
        return {"type": "end", "ok": event.ok, "text": event.text}
    if event.type == "tool":
        return {"type": "tool", "name": event.text}
    return {"type": event.type, "text": event.text}
