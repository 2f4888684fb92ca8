"""Routes `/api/auth/session/{sessionId}/view`: live view of the browser machine.

Only the session's user has access, with a ticket per connection. The WebSocket carries RFB (RFC
6143) as noVNC speaks it. This module relays bytes between the page and the VNC server on the
machine's 127.0.0.1 without parsing them; the page must treat them as hostile.

The close code says why the view ended, and so what the page does next.
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
from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import LIVE_VIEWS
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.path_params import SessionIdInPath
from polydev.controller.api.http.problem_documents import problem_response
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
"""A close frame holds 125 bytes, of which the code takes two."""


class CloseCode(IntEnum):
    """Close codes of a live view."""

    GONE = 4000
    """The browser machine is gone, since the login has ended."""
    SIGNED_OUT = 4401
    TOO_MANY = 4429
    CUT = 4503
    """The connection to the machine failed; the client may try again with a new ticket."""


_NORMAL = 1000
_CLOSE_CODES: dict[type[PolydevError], CloseCode] = {
    NotSignedIn: CloseCode.SIGNED_OUT,
    NoSuchSession: CloseCode.GONE,
    TooManyRequests: CloseCode.TOO_MANY,
}
_CLOSE_REASONS = {
    CloseCode.GONE: "The browser machine is gone",
    CloseCode.CUT: "The connection to the browser machine was lost",
}


@router.post(
    "/auth/session/{sessionId}/view",
    status_code=201,
    responses=problem_responses(NoSuchSession, NoLiveView, TooManyRequests),
)
async def create_view_ticket(
    session_id: SessionIdInPath, caller: ConnectCaller, services: ServicesDep
) -> ViewTicket:
    """Create a ticket for one live view of the session's browser machine.

    Within 30 seconds, open the WebSocket `…/view?ticket=` with the same sign-in or token.
    """
    view = await _view_fetcher(services, caller.user_id, session_id)()
    if view.machine is None:
        raise NoLiveView(
            f"The connect session {session_id} has no live view now",
            hint="It exists from the moment the login page is ready until the login has ended",
        )
    ticket = await services.access.view_tickets.issue(caller, SessionId(session_id))
    return ViewTicket(ticket=ticket.secret, expiresAt=ticket.expires_at)


@router.websocket("/auth/session/{sessionId}/view")
async def view_browser(
    socket: WebSocket, session_id: SessionIdInPath, services: ServicesDep
) -> None:
    """View and control the session's browser machine."""
    try:
        caller = await authenticate(socket)
        caller.require(Scope.CONNECT)
        fetch_view = _view_fetcher(services, caller.user_id, session_id)
        await fetch_view()
        secret = socket.query_params.get("ticket", "")
        await services.access.view_tickets.redeem(caller, SessionId(session_id), secret)
    except PolydevError as error:
        await socket.send_denial_response(problem_response(error))
        return
    offered = socket.scope.get("subprotocols") or []
    await socket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    code, why = await _serve_view(socket, caller, services, fetch_view)
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code, why.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore"))


async def _serve_view(
    socket: WebSocket, caller: Caller, services: Services, fetch_view: _FetchView
) -> tuple[int, str]:
    """Relay the screen until the machine is gone.

    Return close code and reason.
    """
    try:
        with LIVE_VIEWS.acquire(caller):
            view = await fetch_view()
            if view.machine is not None:
                host = services.hosts.client(view.machine.host_id)
                async with host.tcp(view.machine.vm_id, VNC_PORT) as screen:
                    gone = _wait_until_gone(services, fetch_view)
                    await _relay(socket, screen, gone, permission_check(socket, Scope.CONNECT))
        is_gone = (await fetch_view()).machine is None
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
    check_access: streams.PermissionCheck,
) -> None:
    """Relay bytes until one side, the machine or the access ends.

    A client that does not read slows the machine's VNC server down.

    Raises: WebSocketDisconnect, NotSignedIn, ChannelLost.
    """
    tasks = {
        asyncio.create_task(work)
        for work in (
            _to_user(socket, screen),
            _to_screen(socket, screen),
            streams.watch_permission(check_access),
            gone,
        )
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
    """The session's browser machine while it runs, otherwise None."""

    machine: Machine | None

    @property
    def version(self) -> str:
        return self.machine.vm_id if self.machine else ""


_FetchView = Callable[[], Awaitable[_View]]


async def _wait_until_gone(services: Services, fetch_view: _FetchView) -> None:
    """Return once the machine is gone.

    Keep waiting while the database is down.
    """
    while True:
        with suppress(Unavailable):
            async for _ in streams.watch(
                services.database, fetch_view, lambda it: it.machine is None
            ):
                pass
            return
        await asyncio.sleep(streams.PERMISSION_CHECK_S)


def _view_fetcher(services: Services, user_id: UserId, session_id: str) -> _FetchView:
    async def fetch_view() -> _View:
        async with services.database.read(user_id) as connection:
            session = await sessions.get(connection, SessionId(session_id), user_id)
            vm_id = vm_id_for(session.session_id, MachineKind.BROWSER)
            found = await machines.find(connection, vm_id)
        is_there = found is not None and found.status is MachineState.RUNNING
        return _View(found if is_there and session.ended_at is None else None)

    return fetch_view
