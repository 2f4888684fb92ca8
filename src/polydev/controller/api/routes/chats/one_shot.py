"""Route `/api/chat/turn`: one turn with a CLI, without a stored chat."""

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
from polydev.controller.api.http.openapi_responses import media_response, problem_responses
from polydev.controller.api.http.problem_documents import to_problem
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
    body: ChatTurn, caller: ChatCaller, services: ServicesDep, request: Request
) -> StreamingResponse:
    """Run one turn and stream the answer as JSON lines.

    Each line is an object: `{"type": "delta", "text"}` a piece of the answer; `{"type": "text",
    "text"}` a complete message, which repeats its deltas; `{"type": "tool", "name"}` a tool that
    the CLI uses; `{"type": "notice", "text"}` a message from Polydev; `{"type": "error", "code",
    "message", "hint"}`. The last line is `{"type": "end", "ok", "text"}` with the whole answer.
    """
    with ExitStack() as stack:
        stack.enter_context(CHAT_TURNS.acquire(caller))
        turn = await services.one_shot_turns.open(caller.user_id, body.provider, body.text)
        lines = _lines(turn, permission_check(request, Scope.CHAT))
        return streams.ResourceStream(lines, "application/x-ndjson", stack.pop_all())


async def _lines(turn: OneShotTurn, check_access: streams.PermissionCheck) -> AsyncGenerator[str]:
    """Yield the turn as JSON lines while the caller has access."""
    checked_at = time.monotonic()
    async with aclosing(turn.events()) as events:
        async for event in events:
            if time.monotonic() - checked_at >= streams.PERMISSION_CHECK_S:
                checked_at = time.monotonic()
                if not await check_access():
                    yield _line(TurnEvent("error", error=_ended()))
                    yield _line(TurnEvent("end", ok=False))
                    return
            yield _line(event)


def _ended() -> NotSignedIn:
    return NotSignedIn("The sign-in or token of this turn has ended")


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
