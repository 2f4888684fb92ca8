"""Run a program in a machine. `polydev.shared.host_protocol` describes the frames."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from polydev.cli.client.api_client import ApiClient
from polydev.shared.errors import ChannelLost, GuestMisbehaved, by_code
from polydev.shared.host_protocol import STDERR, STDOUT, ExecControl, ExecEnd, ExecRequest

CHUNK_BYTES = 32 * 1024
CAPTURED_BYTES = 8 * 1024 * 1024


def terminal_size() -> tuple[int, int]:
    """Columns and rows of this terminal."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines


async def run_captured(api: ApiClient, vm_id: str, request: ExecRequest) -> dict[str, Any]:
    """Run a program without input. Returns `{exit_code, stdout, stderr}`, bounded."""
    captured = {STDOUT: bytearray(), STDERR: bytearray()}
    async with api.websocket(f"/api/vm/{vm_id}/exec") as socket:
        await socket.send(request.model_dump_json())
        await socket.send(b"")
        program = _Program(socket)
        async for stream, data in program.output():
            if len(captured[stream]) < CAPTURED_BYTES:
                captured[stream] += data
    return {
        "exit_code": program.exit_code,
        "stdout": captured[STDOUT].decode(errors="replace"),
        "stderr": captured[STDERR].decode(errors="replace"),
    }


async def run_attached(api: ApiClient, vm_id: str, request: ExecRequest, *, stdin: bool) -> int:
    """Run a program with this terminal's streams; returns its exit code."""
    async with api.websocket(f"/api/vm/{vm_id}/exec") as socket:
        await socket.send(request.model_dump_json())
        program = _Program(socket)
        with _raw_terminal() if request.pty else _plain_terminal(), _signals(program, request):
            if stdin:
                _send_stdin(socket)
            else:
                await socket.send(b"")
            async for stream, data in program.output():
                out = sys.stdout.buffer if stream == STDOUT else sys.stderr.buffer
                out.write(data)
                out.flush()
    return program.exit_code


class _Program:
    """Frames of one program run."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._sending: set[asyncio.Task[None]] = set()
        self.exit_code = 255

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield its output until it ends. Raises the host's error."""
        try:
            async for frame in self._socket:
                if isinstance(frame, str):
                    self._end(frame)
                    return
                if frame and frame[0] in (STDOUT, STDERR):
                    yield frame[0], frame[1:]
        except ConnectionClosed:
            pass
        raise ChannelLost(
            "The connection to the machine was lost; the program may still be running"
        )

    def control(self, control: ExecControl) -> None:
        """Send a control frame in the background, because callers are signal handlers."""
        task = asyncio.create_task(self._send(control.model_dump_json()))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, frame: str) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(frame)

    def _end(self, frame: str) -> None:
        try:
            end = ExecEnd.model_validate_json(frame)
        except ValidationError:
            raise GuestMisbehaved("The host sent an invalid exit status") from None
        if end.error:
            raise by_code(end.error.code)(end.error.message, hint=end.error.hint)
        self.exit_code = 255 if end.exit_code is None else end.exit_code


def _send_stdin(socket: ClientConnection) -> None:
    """Forward standard input from a thread, because asyncio cannot read regular files.

    It is a daemon thread, because nothing can interrupt a read from a terminal.
    """
    loop = asyncio.get_running_loop()

    def send(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(socket.send(data), loop).result()

    def read() -> None:
        with suppress(OSError, RuntimeError, ConnectionClosed, asyncio.CancelledError):
            while data := os.read(0, CHUNK_BYTES):
                send(data)
            send(b"")

    threading.Thread(target=read, daemon=True, name="stdin").start()


@contextmanager
def _signals(program: _Program, request: ExecRequest) -> Iterator[None]:
    """Forward Ctrl-C and window size changes to the program."""
    loop = asyncio.get_running_loop()
    handlers: dict[int, Callable[[], None]] = {
        signal.SIGINT: lambda: program.control(ExecControl(signal="INT")),
        signal.SIGTERM: lambda: program.control(ExecControl(signal="TERM")),
    }
    if request.pty:
        handlers[signal.SIGWINCH] = lambda: program.control(ExecControl(resize=terminal_size()))
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Put the terminal into raw mode, and restore it afterwards."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _plain_terminal() -> Iterator[None]:
    yield
