"""Streams between a WebSocket and a machine: a program's, or a TCP connection's.

Each direction buffers one chunk, so that a slow reader stops the other side, and endless output
costs no memory here. If the client disconnects, the program is ended or the connection closed.
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


class StreamOpener(Protocol):
    """Opens streams into machines; see `MachineService`."""

    def require_running(self, vm_id: str) -> None: ...
    async def exec(self, vm_id: str, request: ExecRequest) -> GuestProgram: ...
    async def open_tcp(self, vm_id: str, port: int) -> GuestConnection: ...


class NotOpened(Exception):
    """The stream was denied before it began; `reason` explains it."""

    def __init__(self, reason: PolydevError) -> None:
        super().__init__(str(reason))
        self.reason = reason


async def serve_exec(websocket: WebSocket, machines: StreamOpener, vm_id: str) -> None:
    """Run the program of the client's first frame until either side ends."""
    with _before_opening():
        machines.require_running(vm_id)
    await websocket.accept()
    try:
        program = await machines.exec(vm_id, await _receive_request(websocket))
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
        await _try_close(program.close())


async def serve_tcp(websocket: WebSocket, machines: StreamOpener, vm_id: str, port: int) -> None:
    """Relay bytes between the client and a port of the machine until either ends."""
    with _before_opening():
        if port > 65535:
            raise Invalid(f"{port} is not a port")
        connection = await machines.open_tcp(vm_id, port)
    try:
        await websocket.accept()
        code = await _relay(websocket, connection)
        if code is not None:
            await _try_close(websocket.close(code))
    finally:
        await _try_close(connection.close())


async def _relay(websocket: WebSocket, connection: GuestConnection) -> int | None:
    """Relay both directions; return the code to close with, None if the client left."""
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


async def _receive_request(websocket: WebSocket) -> ExecRequest:
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
        with contextlib.suppress(PolydevError):  # the other direction reports how it ended
            if text is not None:
                await _control(program, text)
            elif data:
                await _write_with_heartbeat(program.write(data), heartbeat)
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
            await _write_with_heartbeat(connection.write(data), heartbeat)
        elif data is not None:
            await connection.write_eof()
            return


async def _first_ended(output: Awaitable[ExecEnd], input_: Awaitable[None]) -> ExecEnd | None:
    """Return how the program ended; None if the client left first."""
    sending, receiving = asyncio.ensure_future(output), asyncio.ensure_future(input_)
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            return sending.result()
        receiving.result()
    except WebSocketDisconnect:
        return None
    else:
        return None
    finally:
        sending.cancel()
        receiving.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)


async def _write_with_heartbeat(
    work: Awaitable[None], heartbeat: Callable[[], Awaitable[None]]
) -> None:
    """Write to a slow guest, and detect if the client disconnects.

    The socket is not read while the guest blocks, so only a write to it detects this.
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


async def _try_close(closing: Awaitable[None]) -> None:
    """Close a stream; ignore errors, and do not wait forever."""
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
