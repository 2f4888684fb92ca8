"""Byte streams into a machine: a TCP connection, or a program with its standard streams.

Both are WebSockets to the host agent, with backpressure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from polydev.shared.errors import GuestMisbehaved
from polydev.shared.host_client.error_translation import connection_lost, to_error
from polydev.shared.host_protocol import STDERR, STDOUT, ExecControl, ExecEnd

FRAME_BYTES = 64 * 1024
STDERR_TAIL_BYTES = 16 * 1024


class GuestStream:
    """TCP connection to a port on a machine's 127.0.0.1."""

    def __init__(self, connection: ClientConnection, where: str) -> None:
        self._connection = connection
        self._where = where
        self._pending = b""
        self._ended = False

    async def read(self, max_bytes: int = FRAME_BYTES) -> bytes:
        """Read up to `max_bytes`; empty at the end. Raises ChannelLost."""
        if self._pending:
            chunk, self._pending = self._pending[:max_bytes], self._pending[max_bytes:]
            return chunk
        while not self._ended:
            try:
                frame = await self._connection.recv()
            except ConnectionClosedOK:
                self._ended = True
            except ConnectionClosed:
                raise connection_lost(self._where) from None
            else:
                if isinstance(frame, str):
                    continue
                if frame:
                    self._pending = frame[max_bytes:]
                    return frame[:max_bytes]
                self._ended = True
        return b""

    async def write(self, data: bytes) -> None:
        """Send data; waits while the guest does not read. Raises ChannelLost."""
        for chunk in _frames(data):
            await self._send(chunk)

    async def write_eof(self) -> None:
        """Close the sending direction. Reading still works."""
        await self._send(b"")

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._connection.close()

    async def _send(self, frame: bytes) -> None:
        try:
            await self._connection.send(frame)
        except ConnectionClosed:
            raise connection_lost(self._where) from None


class GuestProcess:
    """Running program in a machine. Iteration yields `(STDOUT or STDERR, bytes)`.

    Leaving the `async with` of `HostClient.exec` ends the program.
    """

    def __init__(self, connection: ClientConnection, where: str) -> None:
        self._connection = connection
        self._where = where
        self._end: ExecEnd | None = None
        self._stderr_tail: deque[bytes] = deque()
        self._stderr_bytes = 0

    @property
    def exit_code(self) -> int | None:
        """Exit code, or 128 + n for signal n; None while it runs."""
        return self._end.exit_code if self._end else None

    @property
    def stderr_tail(self) -> bytes:
        """Last 16 KiB of standard error that `stdout()` or `wait()` skipped."""
        return b"".join(self._stderr_tail)[-STDERR_TAIL_BYTES:]

    async def write(self, data: bytes) -> None:
        """Write to standard input; waits while the program does not read."""
        for chunk in _frames(data):
            await self._send(chunk)

    async def write_eof(self) -> None:
        """Close standard input."""
        await self._send(b"")

    async def resize(self, columns: int, rows: int) -> None:
        """Resize its pseudo-terminal."""
        await self._send(ExecControl(resize=(columns, rows)).model_dump_json())

    async def send_signal(self, name: Literal["INT", "TERM", "KILL", "HUP"]) -> None:
        """Send a signal."""
        await self._send(ExecControl(signal=name).model_dump_json())

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        while self._end is None:
            try:
                frame = await self._connection.recv()
            except ConnectionClosed:
                raise connection_lost(self._where) from None
            if isinstance(frame, str):
                self._end = _parsed_end(frame)
            elif len(frame) > 1:
                if frame[0] not in (STDOUT, STDERR):
                    raise GuestMisbehaved(f"{self._where}: unknown output stream")
                yield frame[0], frame[1:]
        if self._end.error:
            raise to_error(self._end.error)

    async def stdout(self) -> AsyncIterator[bytes]:
        """Yield standard output until the program ends. Stores the tail of standard error."""
        async for stream, chunk in self:
            if stream == STDOUT:
                yield chunk
            else:
                self._keep(chunk)

    async def wait(self) -> int:
        """Discard remaining output and return the exit code. Raises ChannelLost."""
        async for _ in self.stdout():
            pass
        if self._end is None or self._end.exit_code is None:
            raise connection_lost(self._where)
        return self._end.exit_code

    async def aclose(self) -> None:
        """End the program if it is still running."""
        await self._connection.close()

    async def _send(self, frame: bytes | str) -> None:
        try:
            await self._connection.send(frame)
        except ConnectionClosedOK:
            return  # The program has ended; a read returns how.
        except ConnectionClosed:
            raise connection_lost(self._where) from None

    def _keep(self, chunk: bytes) -> None:
        self._stderr_tail.append(chunk)
        self._stderr_bytes += len(chunk)
        while self._stderr_bytes - len(self._stderr_tail[0]) >= STDERR_TAIL_BYTES:
            self._stderr_bytes -= len(self._stderr_tail.popleft())


async def collect(process: GuestProcess, stdin: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    """Send input and collect output. Raises GuestMisbehaved beyond `limit_bytes`."""
    parts: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    total = 0
    async with asyncio.TaskGroup() as group:
        group.create_task(_feed(process, stdin))
        async for stream, chunk in process:
            total += len(chunk)
            if total > limit_bytes:
                raise GuestMisbehaved(
                    f"A program in a machine printed more than {limit_bytes} bytes"
                )
            parts[stream].append(chunk)
    return b"".join(parts[STDOUT]), b"".join(parts[STDERR])


async def _feed(process: GuestProcess, stdin: bytes) -> None:
    await process.write(stdin)
    await process.write_eof()


def _frames(data: bytes) -> list[bytes]:
    return [data[start : start + FRAME_BYTES] for start in range(0, len(data), FRAME_BYTES)]


def _parsed_end(frame: str) -> ExecEnd:
    try:
        return ExecEnd.model_validate_json(frame)
    except ValidationError:
        raise GuestMisbehaved("The host agent sent an invalid exit status") from None
