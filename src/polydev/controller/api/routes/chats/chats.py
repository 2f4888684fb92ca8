"""Routes `/api/chats`: chats with the CLIs in the user's machine.

Requests return immediately; results arrive as the chat's events. Events have ids, so a client that
reconnects with `Last-Event-ID` misses nothing and gets nothing twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from datetime import datetime
from typing import Annotated

from fastapi import Header, Path, Query, Request
from fastapi.responses import StreamingResponse

from polydev.controller.access import Caller
from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import CHAT_STREAMS
from polydev.controller.api.http.idempotency import IdempotentRoute, stable_id
from polydev.controller.api.http.openapi_responses import (
    media_response,
    paged_response,
    problem_responses,
)
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import ID_PATTERN, MAX_ID
from polydev.controller.api.http.services import ChatCaller, Services, ServicesDep, permission_check
from polydev.controller.api.schemas.base import Accepted
from polydev.controller.api.schemas.chats import (
    ChatChange,
    ChatEventView,
    ChatView,
    NewChat,
    PermissionChoice,
    TurnAsked,
    TurnTaken,
    event_json,
)
from polydev.controller.telemetry import metrics
from polydev.shared.domain import ChatEvent, ChatId, Scope
from polydev.shared.errors import (
    ChatBusy,
    IdempotencyConflict,
    MachineBusy,
    NoSuchChat,
    NoSuchPermission,
    NotConnected,
    PermissionAnswered,
    QuotaExceeded,
    TooManyRequests,
    Unavailable,
    UnknownProvider,
)

router = routers.router(prefix="/api/chats", tags=["chat"], route_class=IdempotentRoute)

HEARTBEAT_S = 15.0
_MAX_EVENT_ID = 2**53 - 1
_MAX_EVENTS = 1000

_EXAMPLE = (
    "id: 3000011\n"
    'data: {"id":3000011,"turn":3,"kind":"text","at":"2026-01-02T03:04:05+00:00",'
    '"text":"There are two files."}\n\n'
)
_STREAM = media_response("text/event-stream", {"type": "string", "examples": [_EXAMPLE]})

ChatIdInPath = Annotated[
    str,
    Path(
        alias="chatId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="Id of the chat",
    ),
]
RequestIdInPath = Annotated[
    str,
    Path(
        alias="requestId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="`requestId` of the `permission` event",
    ),
]
Provider = Annotated[
    str | None,
    Query(max_length=64, pattern=ID_PATTERN, description="Only chats with this provider"),
]
After = Annotated[
    int, Query(ge=0, le=_MAX_EVENT_ID, description="Id of the last event that you have")
]
LastEventId = Annotated[
    str | None,
    Header(max_length=32, description="As `after`; sent by browsers, and it takes precedence"),
]


@router.get("", responses=problem_responses() | paged_response())
async def list_chats(
    caller: ChatCaller, services: ServicesDep, paged: PageParams, provider: Provider = None
) -> list[ChatView]:
    """List your chats, newest first."""
    rows = await services.chats.list_chats(caller, paged.page_spec(datetime, str), provider)
    return [ChatView.of(it) for it in paged.trim(rows, lambda it: (it.created_at, it.chat_id))]


@router.post(
    "",
    status_code=201,
    responses=problem_responses(UnknownProvider, QuotaExceeded, IdempotencyConflict),
)
async def create_chat(
    body: NewChat, caller: ChatCaller, services: ServicesDep, request: Request
) -> ChatView:
    """Create a chat with a CLI. Nothing runs before its first turn."""
    chat_id = ChatId(str(stable_id(request)))
    return ChatView.of(await services.chats.create(caller, body.provider, body.title, chat_id))


@router.get("/{chatId}", responses=problem_responses(NoSuchChat))
async def get_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> ChatView:
    """Return a chat."""
    return ChatView.of(await services.chats.get(caller, ChatId(chat_id)))


@router.patch("/{chatId}", responses=problem_responses(NoSuchChat))
async def change_chat(
    chat_id: ChatIdInPath, body: ChatChange, caller: ChatCaller, services: ServicesDep
) -> ChatView:
    """Rename a chat. The CLI no longer changes the title."""
    return ChatView.of(await services.chats.rename(caller, ChatId(chat_id), body.title))


@router.delete("/{chatId}", status_code=204, responses=problem_responses(NoSuchChat))
async def delete_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> None:
    """Delete a chat with its messages. A running turn is stopped."""
    await services.chats.delete(caller, ChatId(chat_id))


@router.post(
    "/{chatId}/turns",
    status_code=202,
    responses=problem_responses(
        *(NoSuchChat, ChatBusy, NotConnected, MachineBusy, TooManyRequests, IdempotencyConflict)
    ),
)
async def ask_chat(
    chat_id: ChatIdInPath, body: TurnAsked, caller: ChatCaller, services: ServicesDep
) -> TurnTaken:
    """Send a prompt to the CLI.

    Its answer arrives as events of the chat.
    """
    turn = await services.chats.start_turn(caller, ChatId(chat_id), body.text)
    return TurnTaken(chatId=chat_id, turn=turn)


@router.post(
    "/{chatId}/stop", status_code=202, responses=problem_responses(NoSuchChat, IdempotencyConflict)
)
async def stop_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> ChatView:
    """Stop the running turn. The event `turn_ended` follows when it has stopped."""
    return ChatView.of(await services.chats.stop_turn(caller, ChatId(chat_id)))


@router.post(
    "/{chatId}/permissions/{requestId}",
    status_code=202,
    responses=problem_responses(
        NoSuchChat, NoSuchPermission, PermissionAnswered, IdempotencyConflict
    ),
)
async def answer_permission(
    chat_id: ChatIdInPath,
    request_id: RequestIdInPath,
    body: PermissionChoice,
    caller: ChatCaller,
    services: ServicesDep,
) -> Accepted:
    """Answer a permission request of the CLI with one of its options."""
    await services.chats.answer_permission(caller, ChatId(chat_id), request_id, body.optionId)
    return Accepted(accepted=True)


@router.get("/{chatId}/events", responses=problem_responses(NoSuchChat))
async def list_chat_events(
    chat_id: ChatIdInPath,
    caller: ChatCaller,
    services: ServicesDep,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_EVENTS)] = _MAX_EVENTS,
) -> list[ChatEventView]:
    """List the stored events of a chat, oldest first.

    A page can hold fewer than `limit` events if they are large. An empty page is the last.
    """
    found = await services.chats.list_events(caller, ChatId(chat_id), after, limit)
    return [ChatEventView.of(it) for it in found]


@router.get(
    "/{chatId}/stream",
    response_class=StreamingResponse,
    responses=problem_responses(NoSuchChat, TooManyRequests) | _STREAM,
)
async def listen_to_chat(
    chat_id: ChatIdInPath,
    request: Request,
    caller: ChatCaller,
    services: ServicesDep,
    after: After = 0,
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """Stream the events of a chat, past and new ones.

    Consecutive pieces of text can arrive merged into one.
    """
    await services.chats.get(caller, ChatId(chat_id))
    with ExitStack() as stack:
        stack.enter_context(CHAT_STREAMS.acquire(caller))
        stack.enter_context(metrics.event_streams.track_inprogress())
        known = _resume_point(after, last_event_id)
        batches = services.chats.subscribe(caller, ChatId(chat_id), known, HEARTBEAT_S)
        check_access = permission_check(request, Scope.CHAT)
        frames = _event_frames(
            batches, _listen_check(services, caller, ChatId(chat_id), check_access)
        )
        return streams.ResourceStream(frames, streams.SSE, stack.pop_all())


def _resume_point(after: int, last_event_id: str | None) -> int:
    """Return the event id to resume after.

    0 if the header is not one of our ids.
    """
    if not last_event_id:
        return after
    is_number = last_event_id.isascii() and last_event_id.isdecimal()
    return min(int(last_event_id), _MAX_EVENT_ID) if is_number else 0


def _listen_check(
    services: Services, caller: Caller, chat_id: ChatId, check_access: streams.PermissionCheck
) -> streams.PermissionCheck:
    """Return a check of the caller's access and the chat's existence."""

    async def check() -> bool:
        try:
            await services.chats.get(caller, chat_id)
        except NoSuchChat:
            return False
        except Unavailable:
            return True  # cannot be checked now; checked again later
        return await check_access()

    return check


async def _event_frames(
    batches: AsyncGenerator[list[ChatEvent]], check_access: streams.PermissionCheck
) -> AsyncGenerator[str]:
    """Yield events as SSE frames while the caller has access."""
    yield ": here\n\n"
    checked_at = time.monotonic()
    async with aclosing(batches):
        async for events in batches:
            if time.monotonic() - checked_at >= HEARTBEAT_S:
                checked_at = time.monotonic()
                if not await check_access():
                    return
            yield "".join(map(_frame, events)) or ": still here\n\n"


def _frame(event: ChatEvent) -> str:
    frames = json.dumps(event_json(event), separators=(",", ":"))
    return f"id: {event.event_id}\ndata: {frames}\n\n"
