"""Route `/api/events`: changes of a user's resources as server-sent events.

An event names the changed resource and its new state; other routes return the details. A client
that reconnects with `Last-Event-ID` (browsers do so on their own) gets what it missed, from any
controller. If those events were pruned, it gets `event: reset` and must read everything again. A
stream ends with the sign-in or token that opened it. Unread events stay in the database: only one
page is held in memory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Annotated

from fastapi import Header, Query, Request
from fastapi.responses import StreamingResponse

from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import EVENT_STREAMS
from polydev.controller.api.http.openapi_responses import media_response, problem_responses
from polydev.controller.api.http.services import ReadCaller, Services, ServicesDep, permission_check
from polydev.controller.store.queries.system import events
from polydev.controller.telemetry import metrics
from polydev.shared.domain import Event, Scope, UserId
from polydev.shared.errors import TooManyRequests

router = routers.router(prefix="/api", tags=["events"])

HEARTBEAT_S = 15.0
"""Interval of the comments that keep the connection open, and of access checks."""
_MIN_INTERVAL_S = 0.1
"""Minimum time between queries: every commit wakes all streams."""
_MAX_ID = 2**63 - 1
_ACCESS_KINDS = frozenset({"account", "token"})

_EXAMPLE = (
    "id: 41\nevent: machine\n"
    'data: {"subject":"vm-5e3c5f0a-2f7b-4f0e-9c3d-6a1b2c3d4e5f","status":"running",'
    '"at":"2026-01-02T03:04:05+00:00"}\n\n'
)
_STREAM = media_response("text/event-stream", {"type": "string", "examples": [_EXAMPLE]})

After = Annotated[
    int | None, Query(ge=0, le=_MAX_ID, description="Id of the last event that you have")
]
LastEventId = Annotated[
    str | None,
    Header(max_length=32, description="As `after`; sent by browsers, and it takes precedence"),
]


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses=problem_responses(TooManyRequests) | _STREAM,
)
async def listen_to_events(
    request: Request,
    caller: ReadCaller,
    services: ServicesDep,
    after: After = None,
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """Stream changes of your resources.

    The stream starts now, or after a known event. Events are `session`, `machine`, `credential`,
    `chat`, `token`, `account`, and `reset`: read everything again.
    """
    with ExitStack() as stack:
        stack.enter_context(EVENT_STREAMS.acquire(caller))
        stack.enter_context(metrics.event_streams.track_inprogress())
        resume_after = _resume_point(after, last_event_id)
        check_access = permission_check(request, Scope.READ)
        frames = _event_stream(services, caller.user_id, resume_after, check_access)
        return streams.ResourceStream(frames, streams.SSE, stack.pop_all())


def _resume_point(after: int | None, last_event_id: str | None) -> int | None:
    """Return the event id to resume after.

    -1 if the header is not one of our ids.
    """
    if not last_event_id:
        return after
    is_number = last_event_id.isascii() and last_event_id.isdecimal()
    return min(int(last_event_id), _MAX_ID) if is_number else -1


async def _event_stream(
    services: Services,
    user_id: UserId,
    resume_after: int | None,
    check_access: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[str]:
    known, greeting = await _start(services, user_id, resume_after)
    yield greeting
    checked_at = time.monotonic()
    while True:
        change = services.database.next_change()
        async with services.database.read(user_id) as connection:
            found = await events.list_after(connection, user_id, known)
        is_due = time.monotonic() - checked_at >= HEARTBEAT_S
        if is_due or any(it.kind in _ACCESS_KINDS for it in found):
            if not await check_access():
                return
            checked_at = time.monotonic()
        if found:
            known = found[-1].event_id
            yield "".join(map(_frame, found))
        elif is_due:
            yield ": still here\n\n"
        if len(found) < events.PAGE:
            await asyncio.sleep(_MIN_INTERVAL_S)
            await _wait_for_change(change, checked_at + HEARTBEAT_S - time.monotonic())


async def _start(services: Services, user_id: UserId, resume_after: int | None) -> tuple[int, str]:
    """Return the id to continue after, and the first frame."""
    async with services.database.read(user_id) as connection:
        newest = await events.get_newest_id(connection, user_id)
        if resume_after is None:
            return newest, f"id: {newest}\n\n"
        if resume_after >= 0 and await events.is_complete_after(connection, user_id, resume_after):
            return resume_after, f"id: {resume_after}\n\n"
    return newest, f"id: {newest}\nevent: reset\ndata: {{}}\n\n"


async def _wait_for_change(change: asyncio.Event, within_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(within_s, 0)):
            await change.wait()


def _frame(event: Event) -> str:
    data = {"subject": event.subject, **event.data, "at": event.at.isoformat()}
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {json.dumps(data)}\n\n"
