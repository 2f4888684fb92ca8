"""`/api/auth/session/{sessionId}/view`: the live view of a connect session's browser machine.

Its person alone has it, with a ticket for each look. What goes over the WebSocket is RFB (RFC
6143), as noVNC speaks it: the machine's own VNC server is on its 127.0.0.1, and this passes bytes
on without reading them. They are a hostile guest's word to the page, which parses them.

Why it ended is told by the close code: what the page does next depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from polydev.controller.access import Caller
from polydev.controller.api.http import errors, routers, streams
from polydev.controller.api.http.concurrency_limits import LIVE_VIEWS
from polydev.controller.api.http.error_responses import problem_responses
from polydev.controller.api.http.path_params import SessionIdInPath
from polydev.controller.api.http.services import (
    ConnectCaller,
    Services,
    ServicesDep,
    authenticate,
    permission_check,
)
from polydev.controller.api.schemas.connect import ViewTicket
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import (
    Machine,
    MachineKind,
    MachineState,
    Scope,
    SessionId,
    UserId,
    vm_id_for,
)
from polydev.shared.errors import (
    NoLiveView,
    NoSuchSession,
    NotSignedIn,
    PolydevError,
    TooManyRequests,
    Unavailable,
)
from polydev.shared.host_client import GuestStream

router = routers.router(prefix="/api", tags=["connect sessions"])

VNC_PORT = 5900
_SUBPROTOCOL = "binary"
_MAX_REASON_BYTES = 120
"""A close frame has 125 bytes, two of which are the code."""


class CloseCode(IntEnum):
    """Why a live view ended."""

    GONE = 4000
    """The browser machine is gone: the login has ended, one way or another."""
    SIGNED_OUT = 4401
    TOO_MANY = 4429
    CUT = 4503
    """The machine could not be reached, or no longer: with a new ticket it may be tried again."""


_NORMAL = 1000
_CLOSE_CODES: dict[type[PolydevError], CloseCode] = {
    NotSignedIn: CloseCode.SIGNED_OUT,
    NoSuchSession: CloseCode.GONE,
    TooManyRequests: CloseCode.TOO_MANY,
}
_CLOSE_REASONS = {
    CloseCode.GONE: "The browser machine is gone",
    CloseCode.CUT: "The browser machine ended the connection to its screen",
}


@router.post(
    "/auth/session/{sessionId}/view",
    status_code=201,
    responses=problem_responses(NoSuchSession, NoLiveView, TooManyRequests),
)
async def create_view_ticket(
    session_id: SessionIdInPath, caller: ConnectCaller, services: ServicesDep
) -> ViewTicket:
    """A ticket for one look into the session's browser machine: open the WebSocket
    `…/view?ticket=` with it, within half a minute, as the same sign-in or token."""
    sight = await _view_fetcher(services, caller.user_id, session_id)()
    if sight.machine is None:
        raise NoLiveView(
            f"The connect session {session_id} has no browser machine to be seen now",
            hint="There is one from the time it is ready until the login has ended",
        )
    ticket = await services.access.view_tickets.issue(caller, SessionId(session_id))
    return ViewTicket(ticket=ticket.secret, expiresAt=ticket.expires_at)


@router.websocket("/auth/session/{sessionId}/view")
async def view_browser(
    socket: WebSocket, session_id: SessionIdInPath, services: ServicesDep
) -> None:
    """See a session's browser machine, and click and type in it."""
    try:
        caller = await authenticate(socket)
        caller.require(Scope.CONNECT)
        look = _view_fetcher(services, caller.user_id, session_id)
        await look()
        secret = socket.query_params.get("ticket", "")
        await services.access.view_tickets.redeem(caller, SessionId(session_id), secret)
    except PolydevError as error:
        await socket.send_denial_response(errors.problem_response(error))
        return
    offered = socket.scope.get("subprotocols") or []
    await socket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    code, why = await _serve_view(socket, caller, services, look)
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code, why.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore"))


async def _serve_view(
    socket: WebSocket, caller: Caller, services: Services, look: _FetchView
) -> tuple[int, str]:
    """Show the machine for as long as there is something to see; why that ended."""
    try:
        with LIVE_VIEWS.acquire(caller):
            sight = await look()
            if sight.machine is not None:
                host = services.hosts.of(sight.machine.host_id)
                async with host.tcp(sight.machine.vm_id, VNC_PORT) as screen:
                    gone = _wait_until_gone(services, look)
                    await _relay(socket, screen, gone, permission_check(socket, Scope.CONNECT))
        is_gone = (await look()).machine is None
        code = CloseCode.GONE if is_gone else CloseCode.CUT
        return code, _CLOSE_REASONS[code]
    except WebSocketDisconnect:
        return _NORMAL, ""
    except PolydevError as error:
        return _CLOSE_CODES.get(type(error), CloseCode.CUT), error.line()


async def _relay(
    socket: WebSocket,
    screen: GuestStream,
    gone: Coroutine[Any, Any, None],
    may: streams.PermissionCheck,
) -> None:
    """Carry bytes both ways until one side ends, the machine is gone, or the person may no longer.

    Who does not take what is shown makes the machine wait.

    Raises: WebSocketDisconnect, NotSignedIn, ChannelLost.
    """
    every = {
        asyncio.create_task(work)
        for work in (
            _to_user(socket, screen),
            _to_screen(socket, screen),
            streams.watch_permission(may),
            gone,
        )
    }
    try:
        done, _ = await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)


async def _to_user(socket: WebSocket, screen: GuestStream) -> None:
    while part := await screen.read():
        await socket.send_bytes(part)


async def _to_screen(socket: WebSocket, screen: GuestStream) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if data := message.get("bytes"):
            await screen.write(data)


@dataclass(frozen=True, slots=True)
class _View:
    """What of a session there is to see: its browser machine while that runs."""

    machine: Machine | None

    @property
    def version(self) -> str:
        return self.machine.vm_id if self.machine else ""


_FetchView = Callable[[], Awaitable[_View]]


async def _wait_until_gone(services: Services, look: _FetchView) -> None:
    """Return when there is nothing to see any more; nobody can tell while the database is away."""
    while True:
        with suppress(Unavailable):
            async for _ in streams.watch(services.database, look, lambda it: it.machine is None):
                pass
            return
        await asyncio.sleep(streams.PERMISSION_CHECK_S)


def _view_fetcher(services: Services, user_id: UserId, session_id: str) -> _FetchView:
    async def look() -> _View:
        async with services.database.read(user_id) as connection:
            session = await sessions.get(connection, SessionId(session_id), user_id)
            vm_id = vm_id_for(session.session_id, MachineKind.BROWSER)
            found = await machines.find(connection, vm_id)
        is_there = found is not None and found.status is MachineState.RUNNING
        return _View(found if is_there and session.ended_at is None else None)

    return look
