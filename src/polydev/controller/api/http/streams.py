"""Answers that wait or go on: long polls, server-sent events, a program in a machine.

The routers use them. Nothing looks again and again: the database tells of each commit.
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

from polydev.controller.api.http.errors import to_problem
from polydev.controller.store.engine.database import Database
from polydev.controller.workflows.machines.resume_on_use import ActivityRecorder, ResumeOnUse
from polydev.shared.domain import VmId
from polydev.shared.errors import BadRequest, NotSignedIn, PolydevError
from polydev.shared.host_client import GuestProcess, Host
from polydev.shared.host_protocol import ExecControl, ExecEnd, ExecRequest

MAX_WAIT_S = 30.0
PERMISSION_CHECK_S = 15.0
"""How long a program may go on after its person may no longer."""
STALL_TIMEOUT_S = 30.0
"""For how long a reader may take nothing before its stream ends."""
SSE = "text/event-stream"
_FIRST_FRAME_TIMEOUT_S = 10.0
_MIN_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.4
"""Anybody's commit wakes everybody who waits: who looked in vain looks less often for a while."""


class ResourceStream(StreamingResponse):
    """A stream that holds something while it is open, and ends when its reader takes nothing for
    long: whoever just goes away without a word holds it no longer than that."""

    def __init__(
        self,
        told: AsyncGenerator[str | bytes],
        media_type: str,
        held: ExitStack,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(told, media_type=media_type, headers=headers)
        self._told = told
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._told.aclose()

    async def stream_response(self, send: Send) -> None:
        async def send_within_limit(message: Message) -> None:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(send_within_limit)


class Versioned(Protocol):
    """A view that tells whether it is the same as before."""

    @property
    def version(self) -> str: ...


V = TypeVar("V", bound=Versioned)
Fetch = Callable[[], Awaitable[V]]
PermissionCheck = Callable[[], Awaitable[bool]]
"""Whether who opened a stream may still have it."""


async def wait_for_change(
    database: Database, look: Fetch[V], after: str | None, wait_s: float
) -> V:
    """The view as soon as it is not at version `after`, or after `wait_s` as it is."""
    try:
        async with asyncio.timeout(min(wait_s, MAX_WAIT_S)):
            async for view in _poll_views(database, look):
                if view.version != after:
                    return view
    except TimeoutError:
        pass
    return await look()


async def watch(
    database: Database, look: Fetch[V], is_last: Callable[[V], bool]
) -> AsyncIterator[V]:
    """The view now and after each change, up to the last one."""
    version = None
    async for view in _poll_views(database, look):
        if view.version != version:
            version = view.version
            yield view
        if is_last(view):
            return


async def _poll_views(database: Database, look: Fetch[V]) -> AsyncIterator[V]:
    version, pause_s = None, _MIN_PAUSE_S
    while True:
        change = database.next_change()
        view = await look()
        pause_s = _MIN_PAUSE_S if view.version != version else min(2 * pause_s, _MAX_PAUSE_S)
        version = view.version
        yield view
        await change.wait()
        await asyncio.sleep(pause_s)


class ProgramTarget(Protocol):
    """A machine in which a program is to run: `own_machines.Reached`."""

    @property
    def vm_id(self) -> VmId: ...

    @property
    def resume_on_use(self) -> ResumeOnUse: ...

    async def running_host(self) -> Host:
        """Its host, once the machine runs."""


async def relay_program(socket: WebSocket, reached: ProgramTarget, may: PermissionCheck) -> None:
    """Carry a program's streams between an accepted WebSocket and a machine.

    The frames are those of hostapi.py. Whoever goes away, or may no longer, ends the program. The
    machine is in use as long as it runs; one with a terminal, as long as somebody types.
    """
    try:
        async with asyncio.timeout(_FIRST_FRAME_TIMEOUT_S):
            request = ExecRequest.model_validate_json(await socket.receive_text())
        host, vm_id, resume_on_use = (
            await reached.running_host(),
            reached.vm_id,
            reached.resume_on_use,
        )
        typed = resume_on_use.activity_recorder(vm_id)
        in_use = nullcontext() if request.pty else resume_on_use.keep_in_use(vm_id)
        async with in_use, host.exec(vm_id, request) as process:
            inward = _to_program(socket, process, typed)
            await pump(inward, _to_user(socket, process), may)
        end = ExecEnd(exit_code=process.exit_code)
    except WebSocketDisconnect:
        return
    except (ValidationError, KeyError, TimeoutError):
        end = error_end(BadRequest("The first frame must be a text frame with an ExecRequest"))
    except PolydevError as error:
        end = error_end(error)
    await send_end(socket, end)


async def send_end(socket: WebSocket, end: ExecEnd) -> None:
    """The last frame of a program's stream, if anybody is there to read it."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(end.model_dump_json())
        await socket.close()


async def pump(
    to_program: Coroutine[Any, Any, None], to_user: Coroutine[Any, Any, None], may: PermissionCheck
) -> None:
    """Carry both directions until the program ends.

    Raises: WebSocketDisconnect when the person is gone, NotSignedIn when they may no longer.
    """
    inward = asyncio.create_task(to_program)
    outward = asyncio.create_task(to_user)
    asking = asyncio.create_task(watch_permission(may))
    every: set[asyncio.Task[None]] = {inward, outward, asking}
    try:
        await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
        for task in (inward, asking):
            if task.done():
                task.result()
        await outward
    finally:
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)


async def watch_permission(may: PermissionCheck) -> None:
    """Raises NotSignedIn when the person may no longer."""
    while True:
        await asyncio.sleep(PERMISSION_CHECK_S)
        if not await may():
            raise NotSignedIn("What this was opened with was signed out or revoked")


async def _to_user(socket: WebSocket, process: GuestProcess) -> None:
    async for stream, chunk in process:
        await socket.send_bytes(bytes([stream]) + chunk)


async def _to_program(socket: WebSocket, process: GuestProcess, typed: ActivityRecorder) -> None:
    """Raises WebSocketDisconnect when the person is gone."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        await typed.show()
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
    """The end of a program that could not go on."""
    return ExecEnd(error=to_problem(error))
