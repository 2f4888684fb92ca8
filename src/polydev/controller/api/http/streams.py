"""Serve long polls, server-sent events and programs in machines.

Nothing polls on a timer: the database signals each commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from polydev.controller.api.http.problem_documents import to_problem
from polydev.controller.store.engine.database import Database
from polydev.controller.workflows.machines.resume_on_use import ActivityRecorder, ResumeOnUse
from polydev.shared.domain import VmId
from polydev.shared.errors import BadRequest, NotSignedIn, PolydevError
from polydev.shared.host_client import GuestProcess, HostClient
from polydev.shared.host_protocol import ExecControl, ExecEnd, ExecRequest

MAX_WAIT_S = 30.0
PERMISSION_CHECK_S = 15.0
"""Interval of the access checks while a program runs."""
STALL_TIMEOUT_S = 30.0
"""A stream ends when its reader takes nothing for this long."""
SSE = "text/event-stream"
_FIRST_FRAME_TIMEOUT_S = 10.0
_MIN_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.4
"""Every commit wakes all waiters, so one that finds no change pauses longer."""


class ResourceStream(StreamingResponse):
    """A streaming response that holds resources, and ends when its reader stalls.

    Without the timeout, a client that vanishes silently would hold the resources for ever.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[str | bytes],
        media_type: str,
        stack: ExitStack,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(chunks, media_type=media_type, headers=headers)
        self._chunks = chunks
        self._held = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._chunks.aclose()

    async def stream_response(self, send: Send) -> None:
        async def send_within_limit(message: Message) -> None:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(send_within_limit)


class Versioned(Protocol):
    """A view with a version that tells whether it changed."""

    @property
    def version(self) -> str: ...


V = TypeVar("V", bound=Versioned)
Fetch = Callable[[], Awaitable[V]]
PermissionCheck = Callable[[], Awaitable[bool]]
"""Checks that the caller of a stream still has access."""


async def wait_for_change(
    database: Database, fetch: Fetch[V], after: str | None, wait_s: float
) -> V:
    """Return the view once its version differs from `after`, or after `wait_s`."""
    try:
        async with asyncio.timeout(min(wait_s, MAX_WAIT_S)):
            async for view in _poll_views(database, fetch):
                if view.version != after:
                    return view
    except TimeoutError:
        pass
    return await fetch()


async def watch(
    database: Database, fetch: Fetch[V], is_last: Callable[[V], bool]
) -> AsyncIterator[V]:
    """Yield the view now and after each change, until the last."""
    version = None
    async for view in _poll_views(database, fetch):
        if view.version != version:
            version = view.version
            yield view
        if is_last(view):
            return


async def _poll_views(database: Database, fetch: Fetch[V]) -> AsyncIterator[V]:
    version, pause_s = None, _MIN_PAUSE_S
    while True:
        change = database.next_change()
        view = await fetch()
        pause_s = _MIN_PAUSE_S if view.version != version else min(2 * pause_s, _MAX_PAUSE_S)
        version = view.version
        yield view
        await change.wait()
        await asyncio.sleep(pause_s)


class ProgramTarget(Protocol):
    """A machine that runs a program: see `MachineAccess`."""

    @property
    def vm_id(self) -> VmId: ...

    @property
    def resume_on_use(self) -> ResumeOnUse: ...

    async def running_host(self) -> HostClient:
        """Return its host once the machine runs."""


async def relay_program(
    socket: WebSocket, target: ProgramTarget, check_access: PermissionCheck
) -> None:
    """Relay a program's streams between an accepted WebSocket and a machine.

    Frames are those of `shared/host_protocol`. The program ends when its caller disconnects or
    loses access. It keeps the machine in use; with a terminal, only typing does.
    """
    try:
        async with asyncio.timeout(_FIRST_FRAME_TIMEOUT_S):
            request = ExecRequest.model_validate_json(await socket.receive_text())
        host, vm_id, resume_on_use = (
            await target.running_host(),
            target.vm_id,
            target.resume_on_use,
        )
        activity = resume_on_use.activity_recorder(vm_id)
        in_use = nullcontext() if request.pty else resume_on_use.keep_in_use(vm_id)
        async with in_use, host.exec(vm_id, request) as process:
            inward = _to_program(socket, process, activity)
            await pump(inward, _to_user(socket, process), check_access)
        end = ExecEnd(exit_code=process.exit_code)
    except WebSocketDisconnect:
        return
    except (ValidationError, KeyError, TimeoutError):
        end = error_end(BadRequest("The first frame must be a text frame with an ExecRequest"))
    except PolydevError as error:
        end = error_end(error)
    await send_end(socket, end)


async def send_end(socket: WebSocket, end: ExecEnd) -> None:
    """Send the last frame of a program, unless the client is gone."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(end.model_dump_json())
        await socket.close()


async def pump(
    to_program: Coroutine[Any, Any, None],
    to_user: Coroutine[Any, Any, None],
    check_access: PermissionCheck,
) -> None:
    """Relay both directions until the program ends.

    Raises: WebSocketDisconnect when the client is gone, NotSignedIn when it loses access.
    """
    inward = asyncio.create_task(to_program)
    outward = asyncio.create_task(to_user)
    watching = asyncio.create_task(watch_permission(check_access))
    tasks: set[asyncio.Task[None]] = {inward, outward, watching}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (inward, watching):
            if task.done():
                task.result()
        await outward
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def watch_permission(check_access: PermissionCheck) -> None:
    """Wait until the caller loses access, then raise NotSignedIn."""
    while True:
        await asyncio.sleep(PERMISSION_CHECK_S)
        if not await check_access():
            raise NotSignedIn("The sign-in or token of this connection has ended")


async def _to_user(socket: WebSocket, process: GuestProcess) -> None:
    async for stream, chunk in process:
        await socket.send_bytes(bytes([stream]) + chunk)


async def _to_program(socket: WebSocket, process: GuestProcess, activity: ActivityRecorder) -> None:
    """Relay input to the program. Raises WebSocketDisconnect when the client is gone."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        await activity.record()
        if (data := message.get("bytes")) is not None:
            await (process.write(data) if data else process.write_eof())
        elif (text := message.get("text")) is not None:
            await _apply_control(ExecControl.model_validate_json(text), process)


async def _apply_control(control: ExecControl, process: GuestProcess) -> None:
    if control.resize is not None:
        await process.resize(*control.resize)
    if control.signal is not None:
        await process.send_signal(control.signal)


def error_end(error: PolydevError) -> ExecEnd:
    """Return the last frame of a program that failed."""
    return ExecEnd(error=to_problem(error))
