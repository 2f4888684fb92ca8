"""Byte streams between a WebSocket and a machine: a program's streams, or a TCP connection.

`server.py` calls it. Each direction holds one chunk: whoever does not read makes the other side
wait, so a guest that prints forever costs no memory here. When the client goes, the guest's program
is ended and its connection closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from polydev.hostagent.channel.contract import GuestConnection, GuestProgram
from polydev.hostagent.system.error_mapping import problem_of
from polydev.shared.errors import Invalid, PolydevError
from polydev.shared.host_protocol import STDOUT, ExecControl, ExecEnd, ExecRequest

FRAME_BYTES = 64 * 1024
_REQUEST_LIMIT_S = 30.0
_HEARTBEAT_S = 15.0
_END_LIMIT_S = 10.0


class Reachable(Protocol):
    """What opens streams into machines: `machines.Machines`."""

    def require_running(self, vm_id: str) -> None: ...
    async def exec(self, vm_id: str, request: ExecRequest) -> GuestProgram: ...
    async def open_tcp(self, vm_id: str, port: int) -> GuestConnection: ...


class NotOpened(Exception):
    """The stream was refused before it began; `reason` says why."""

    def __init__(self, reason: PolydevError) -> None:
        super().__init__(str(reason))
        self.reason = reason


async def serve_exec(websocket: WebSocket, machines: Reachable, vm_id: str) -> None:
    """Run the program that the client's first frame names, until it ends or the client goes."""
    with _before_opening():
        machines.require_running(vm_id)
    await websocket.accept()
    try:
        program = await machines.exec(vm_id, await _requested(websocket))
    except WebSocketDisconnect:
        return
    except Exception as error:
        await _end(websocket, ExecEnd(error=problem_of(error)))
        return
    try:
        end = await _first_ended(
            _program_to_client(websocket, program), _client_to_program(websocket, program)
        )
        if end is not None:
            await _end(websocket, end)
    finally:
        await _closed(program.close())


async def serve_tcp(websocket: WebSocket, machines: Reachable, vm_id: str, port: int) -> None:
    """Carry bytes between the client and a port of the machine until either side ends."""
    with _before_opening():
        if port > 65535:
            raise Invalid(f"{port} is no port")
        connection = await machines.open_tcp(vm_id, port)
    try:
        await websocket.accept()
        code = await _carried(websocket, connection)
        if code is not None:
            await _closed(websocket.close(code))
    finally:
        await _closed(connection.close())


async def _carried(websocket: WebSocket, connection: GuestConnection) -> int | None:
    """Carry both directions to their ends; the code to close with, None when the client went."""
    code: int | None = 1000
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_connection_to_client(websocket, connection))
            group.create_task(_client_to_connection(websocket, connection))
    except* PolydevError:
        code = 1011
    except* WebSocketDisconnect:
        code = None
    return code


async def _requested(websocket: WebSocket) -> ExecRequest:
    try:
        async with asyncio.timeout(_REQUEST_LIMIT_S):
            return ExecRequest.model_validate_json(await _text(websocket))
    except TimeoutError:
        raise Invalid("No program was named in time") from None
    except ValidationError as error:
        raise Invalid(f"The program cannot be run: {error.errors()[0]['msg']}") from None


async def _program_to_client(websocket: WebSocket, program: GuestProgram) -> ExecEnd:
    try:
        while (chunk := await program.read()) is not None:
            stream, data = chunk
            for part in _parts(data):
                await websocket.send_bytes(bytes([stream]) + part)
        return ExecEnd(exit_code=await program.wait())
    except PolydevError as error:
        return ExecEnd(error=problem_of(error))


async def _client_to_program(websocket: WebSocket, program: GuestProgram) -> None:
    async def heartbeat() -> None:
        await websocket.send_bytes(bytes([STDOUT]))

    while True:
        data, text = await _frame(websocket)
        with contextlib.suppress(PolydevError):  # How it ended is told by the other direction.
            if text is not None:
                await _control(program, text)
            elif data:
                await _patiently(program.write(data), heartbeat)
            else:
                await program.write_eof()


async def _control(program: GuestProgram, text: str) -> None:
    try:
        control = ExecControl.model_validate_json(text)
    except ValidationError:
        return
    if control.resize:
        await program.resize(*control.resize)
    if control.signal:
        await program.send_signal(control.signal)


async def _connection_to_client(websocket: WebSocket, connection: GuestConnection) -> None:
    while data := await connection.read(FRAME_BYTES):
        for part in _parts(data):
            await websocket.send_bytes(part)
    await websocket.send_bytes(b"")


async def _client_to_connection(websocket: WebSocket, connection: GuestConnection) -> None:
    async def heartbeat() -> None:
        await websocket.send_text("")

    while True:
        data, _ = await _frame(websocket)
        if data:
            await _patiently(connection.write(data), heartbeat)
        elif data is not None:
            await connection.write_eof()
            return


async def _first_ended(told: Awaitable[ExecEnd], fed: Awaitable[None]) -> ExecEnd | None:
    """How the program ended; None when the client went first."""
    telling, feeding = asyncio.ensure_future(told), asyncio.ensure_future(fed)
    try:
        await asyncio.wait({telling, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            return telling.result()
        feeding.result()
    except WebSocketDisconnect:
        return None
    else:
        return None
    finally:
        telling.cancel()
        feeding.cancel()
        await asyncio.gather(telling, feeding, return_exceptions=True)


async def _patiently(work: Awaitable[None], heartbeat: Callable[[], Awaitable[None]]) -> None:
    """Wait for a guest that does not read, and notice meanwhile when the client goes.

    While the guest makes us wait, the socket is not read either, so only writing to it tells.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_HEARTBEAT_S))[0]:
            await heartbeat()
        await task
    finally:
        task.cancel()


async def _frame(websocket: WebSocket) -> tuple[bytes | None, str | None]:
    message: Any = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    return message.get("bytes"), message.get("text")


async def _text(websocket: WebSocket) -> str:
    _, text = await _frame(websocket)
    if text is None:
        raise Invalid("The first frame of a program must be text")
    return text


async def _end(websocket: WebSocket, end: ExecEnd) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_text(end.model_dump_json())
        await websocket.close()


async def _closed(closing: Awaitable[None]) -> None:
    """Close something whatever it says, but do not wait for it forever."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_END_LIMIT_S):
            await closing


def _parts(data: bytes) -> list[bytes]:
    return [data[start : start + FRAME_BYTES] for start in range(0, len(data), FRAME_BYTES)]


@contextlib.contextmanager
def _before_opening() -> Any:
    try:
        yield
    except PolydevError as error:
        raise NotOpened(error) from error
