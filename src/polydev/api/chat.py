"""`/api/chat/…`: talking to the CLI in the person's machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from polydev.api.answers import answers, of_type
from polydev.api.problems import on_wire
from polydev.api.schemas import ChatTurn
from polydev.api.services import Chatting, Reach
from polydev.chat import Turn, TurnEvent
from polydev.errors import NotConnected, UnknownProvider

router = APIRouter(prefix="/api/chat", tags=["chat"])


@router.post(
    "/turn",
    response_class=StreamingResponse,
    responses=answers(UnknownProvider, NotConnected) | of_type("application/x-ndjson"),
)
async def take_turn(asked: ChatTurn, caller: Chatting, services: Reach) -> StreamingResponse:
    """One turn: the answer as it comes, one JSON object a line, and `end` as the last."""
    opened = await services.chats.open(caller.user_id, asked.provider, asked.text)
    return StreamingResponse(_lines(opened), media_type="application/x-ndjson")


async def _lines(opened: Turn) -> AsyncIterator[str]:
    async for event in opened.events():
        yield json.dumps(_on_wire(event)) + "\n"


def _on_wire(event: TurnEvent) -> dict[str, Any]:
    if event.error is not None:
        return {"type": "error", **on_wire(event.error).model_dump()}
    if event.type == "end":
        return {"type": "end", "ok": event.ok, "text": event.text}
    if event.type == "tool":
        return {"type": "tool", "name": event.text}
    return {"type": event.type, "text": event.text}
