"""`GET /api/events`: everything that changes of what a person has, as server-sent events.

An event says what changed and its new state in a few words; what it is now, the other calls tell.
Ids make it whole: who comes again with `Last-Event-ID` (browsers do by themselves) is told what
happened meanwhile, from whichever controller answers. If that was pruned, `event: reset` says so:
then everything is to be looked at anew. A stream ends with the sign-in or token that opened it.
What a reader does not take stays in the database: a page of events is all that waits in memory.
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
from polydev.controller.api.http.error_responses import media_response, problem_responses
from polydev.controller.api.http.services import ReadCaller, Services, ServicesDep, permission_check
from polydev.controller.store.queries.system import events
from polydev.controller.telemetry import metrics
from polydev.shared.domain import Event, Scope, UserId
from polydev.shared.errors import TooManyRequests

router = routers.router(prefix="/api", tags=["events"])

HEARTBEAT_S = 15.0
"""How often a comment keeps the connection up, and who listens is asked about anew."""
_MIN_INTERVAL_S = 0.1
"""Changes that come closer together are told together: commits of others wake everybody."""
_MAX_ID = 2**63 - 1
_ACCESS_KINDS = frozenset({"account", "token"})

_EXAMPLE = (
    "id: 41\nevent: machine\n"
    'data: {"subject":"vm-5e3c5f0a-2f7b-4f0e-9c3d-6a1b2c3d4e5f","status":"running",'
    '"at":"2026-01-02T03:04:05+00:00"}\n\n'
)
_STREAM = media_response("text/event-stream", {"type": "string", "examples": [_EXAMPLE]})

After = Annotated[
    int | None, Query(ge=0, le=_MAX_ID, description="The id of the last event that is known")
]
LastEventId = Annotated[
    str | None, Header(max_length=32, description="The same, as browsers send it; it counts first")
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
    """What changes of yours, as it happens: `session`, `machine`, `credential`, `token`,
    `account`; from now on, or after an event that is known. `reset`: look at everything anew."""
    with ExitStack() as held:
        held.enter_context(EVENT_STREAMS.acquire(caller))
        held.enter_context(metrics.event_streams.track_inprogress())
        wanted = _resume_point(after, last_event_id)
        may_read = permission_check(request, Scope.READ)
        told = _event_stream(services, caller.user_id, wanted, may_read)
        return streams.ResourceStream(told, streams.SSE, held.pop_all())


def _resume_point(after: int | None, last_event_id: str | None) -> int | None:
    """Where to go on. An id that is none of ours cannot be gone on from: -1."""
    if not last_event_id:
        return after
    is_number = last_event_id.isascii() and last_event_id.isdecimal()
    return min(int(last_event_id), _MAX_ID) if is_number else -1


async def _event_stream(
    services: Services,
    user_id: UserId,
    wanted: int | None,
    may_read: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[str]:
    known, greeting = await _start(services, user_id, wanted)
    yield greeting
    asked_at = time.monotonic()
    while True:
        change = services.database.next_change()
        async with services.database.read(user_id) as connection:
            found = await events.list_after(connection, user_id, known)
        is_due = time.monotonic() - asked_at >= HEARTBEAT_S
        if is_due or any(it.kind in _ACCESS_KINDS for it in found):
            if not await may_read():
                return
            asked_at = time.monotonic()
        if found:
            known = found[-1].event_id
            yield "".join(map(_frame, found))
        elif is_due:
            yield ": still here\n\n"
        if len(found) < events.PAGE:
            await asyncio.sleep(_MIN_INTERVAL_S)
            await _wait_for_change(change, asked_at + HEARTBEAT_S - time.monotonic())


async def _start(services: Services, user_id: UserId, wanted: int | None) -> tuple[int, str]:
    """The id to tell on from, and what to say first."""
    async with services.database.read(user_id) as connection:
        newest = await events.get_newest_id(connection, user_id)
        if wanted is None:
            return newest, f"id: {newest}\n\n"
        if wanted >= 0 and await events.is_complete_after(connection, user_id, wanted):
            return wanted, f"id: {wanted}\n\n"
    return newest, f"id: {newest}\nevent: reset\ndata: {{}}\n\n"


async def _wait_for_change(change: asyncio.Event, within_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(within_s, 0)):
            await change.wait()


def _frame(event: Event) -> str:
    data = {"subject": event.subject, **event.data, "at": event.at.isoformat()}
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {json.dumps(data)}\n\n"
