"""`/api/chats…`: conversations with the CLIs in the person's machine.

A request writes what is wanted and answers; what comes of it is told by the chat's events, as a
stream with ids: who comes again with `Last-Event-ID` misses nothing and is told nothing twice.
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
from polydev.controller.api.http.error_responses import (
    media_response,
    paged_response,
    problem_responses,
)
from polydev.controller.api.http.idempotency import IdempotentRoute, stable_id
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
    Path(alias="chatId", min_length=1, max_length=MAX_ID, pattern=ID_PATTERN, description="A chat"),
]
RequestIdInPath = Annotated[
    str,
    Path(
        alias="requestId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="What the event `permission` calls it",
    ),
]
Provider = Annotated[str | None, Query(max_length=64, pattern=ID_PATTERN, description="Of one CLI")]
After = Annotated[
    int, Query(ge=0, le=_MAX_EVENT_ID, description="The id of the last event that is known")
]
LastEventId = Annotated[
    str | None, Header(max_length=32, description="The same, as browsers send it; it counts first")
]


@router.get("", responses=problem_responses() | paged_response())
async def list_chats(
    caller: ChatCaller, services: ServicesDep, paged: PageParams, provider: Provider = None
) -> list[ChatView]:
    """One's chats, the newest first."""
    rows = await services.chats.list_chats(caller, paged.page_spec(datetime, str), provider)
    return [ChatView.of(it) for it in paged.trim(rows, lambda it: (it.created_at, it.chat_id))]


@router.post(
    "",
    status_code=201,
    responses=problem_responses(UnknownProvider, QuotaExceeded, IdempotencyConflict),
)
async def create_chat(
    asked: NewChat, caller: ChatCaller, services: ServicesDep, request: Request
) -> ChatView:
    """A new chat with a CLI. Nothing runs before its first turn."""
    chat_id = ChatId(str(stable_id(request)))
    return ChatView.of(await services.chats.create(caller, asked.provider, asked.title, chat_id))


@router.get("/{chatId}", responses=problem_responses(NoSuchChat))
async def get_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> ChatView:
    """One chat."""
    return ChatView.of(await services.chats.get(caller, ChatId(chat_id)))


@router.patch("/{chatId}", responses=problem_responses(NoSuchChat))
async def change_chat(
    chat_id: ChatIdInPath, asked: ChatChange, caller: ChatCaller, services: ServicesDep
) -> ChatView:
    """Give a chat another title. The CLI does not change it any more."""
    return ChatView.of(await services.chats.rename(caller, ChatId(chat_id), asked.title))


@router.delete("/{chatId}", status_code=204, responses=problem_responses(NoSuchChat))
async def delete_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> None:
    """Delete a chat with everything in it; a turn that goes on is stopped."""
    await services.chats.delete(caller, ChatId(chat_id))


@router.post(
    "/{chatId}/turns",
    status_code=202,
    responses=problem_responses(
        *(NoSuchChat, ChatBusy, NotConnected, MachineBusy, TooManyRequests, IdempotencyConflict)
    ),
)
async def ask_chat(
    chat_id: ChatIdInPath, asked: TurnAsked, caller: ChatCaller, services: ServicesDep
) -> TurnTaken:
    """Say something to the CLI. Its answer comes as events, whoever listens."""
    turn = await services.chats.start_turn(caller, ChatId(chat_id), asked.text)
    return TurnTaken(chatId=chat_id, turn=turn)


@router.post(
    "/{chatId}/stop", status_code=202, responses=problem_responses(NoSuchChat, IdempotencyConflict)
)
async def stop_chat(chat_id: ChatIdInPath, caller: ChatCaller, services: ServicesDep) -> ChatView:
    """Have the CLI stop, if it still answers; `turn_ended` tells when it has."""
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
    asked: PermissionChoice,
    caller: ChatCaller,
    services: ServicesDep,
) -> Accepted:
    """Choose what the CLI may do, of what its request offers."""
    await services.chats.answer_permission(caller, ChatId(chat_id), request_id, asked.optionId)
    return Accepted(accepted=True)


@router.get("/{chatId}/events", responses=problem_responses(NoSuchChat))
async def list_chat_events(
    chat_id: ChatIdInPath,
    caller: ChatCaller,
    services: ServicesDep,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_EVENTS)] = _MAX_EVENTS,
) -> list[ChatEventView]:
    """What happened in a chat, the oldest first, as far as it is stored. Fewer than `limit` come
    where they are large; none come when there are no more."""
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
    """What happened in a chat after an event that is known, and what happens. Pieces of text that
    follow each other may come as one."""
    await services.chats.get(caller, ChatId(chat_id))
    with ExitStack() as held:
        held.enter_context(CHAT_STREAMS.acquire(caller))
        held.enter_context(metrics.event_streams.track_inprogress())
        known = _resume_point(after, last_event_id)
        followed = services.chats.subscribe(caller, ChatId(chat_id), known, HEARTBEAT_S)
        may = permission_check(request, Scope.CHAT)
        told = _event_frames(followed, _listen_check(services, caller, ChatId(chat_id), may))
        return streams.ResourceStream(told, streams.SSE, held.pop_all())


def _resume_point(after: int, last_event_id: str | None) -> int:
    """Where to go on; an id that is none of ours cannot be gone on from."""
    if not last_event_id:
        return after
    is_number = last_event_id.isascii() and last_event_id.isdecimal()
    return min(int(last_event_id), _MAX_EVENT_ID) if is_number else 0


def _listen_check(
    services: Services, caller: Caller, chat_id: ChatId, may: streams.PermissionCheck
) -> streams.PermissionCheck:
    """Whether who listens still may, and there is still a chat to listen to."""

    async def ask() -> bool:
        try:
            await services.chats.get(caller, chat_id)
        except NoSuchChat:
            return False
        except Unavailable:
            return True  # nobody can say now; asked again later
        return await may()

    return ask


async def _event_frames(
    followed: AsyncGenerator[list[ChatEvent]], may: streams.PermissionCheck
) -> AsyncGenerator[str]:
    """The events as frames, as long as the person may have them."""
    yield ": here\n\n"
    asked_at = time.monotonic()
    async with aclosing(followed):
        async for events in followed:
            if time.monotonic() - asked_at >= HEARTBEAT_S:
                asked_at = time.monotonic()
                if not await may():
                    return
            yield "".join(map(_frame, events)) or ": still here\n\n"


def _frame(event: ChatEvent) -> str:
    told = json.dumps(event_json(event), separators=(",", ":"))
    return f"id: {event.event_id}\ndata: {told}\n\n"
