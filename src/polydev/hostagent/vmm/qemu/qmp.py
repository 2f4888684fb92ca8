"""A client of the QEMU Machine Protocol: one JSON object a line.

Source: docs/interop/qmp-spec.txt of QEMU. QMP serves one client at a time; when an agent dies, the
kernel closes its connection and QEMU accepts the next. QEMU may be compromised by its guest: lines
are bounded, and every wait has a limit.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from polydev.shared.errors import VmmFailed

_LINE_LIMIT = 1024 * 1024
_ANSWER_LIMIT_S = 30

EventHandler = Callable[[str, dict[str, Any]], None]


class Qmp:
    """A connection: `execute` sends commands; events go to the handler as they arrive."""

    def __init__(
        self,
        connected: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: EventHandler,
    ) -> None:
        self._socket = connected
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, connected: socket.socket, on_event: EventHandler) -> Qmp:
        """Negotiate with QEMU over a socket, which is closed on failure. Raises: VmmFailed."""
        reader, writer = await asyncio.open_unix_connection(sock=connected, limit=_LINE_LIMIT)
        writer.transport.set_write_buffer_limits(0)
        qmp = cls(connected, reader, writer, on_event)
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                await qmp._read_message()
            qmp._listener = asyncio.create_task(qmp._listen())
            await qmp.execute("qmp_capabilities")
        except TimeoutError as error:
            await qmp.close()
            raise VmmFailed(
                f"QEMU runs but did not answer on its control socket within {_ANSWER_LIMIT_S} s"
            ) from error
        except (EOFError, OSError, ValueError) as error:
            await qmp.close()
            raise VmmFailed(f"QEMU's control socket failed: {error!r}") from error
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its result. Raises: VmmFailed on an error or timeout."""
        return await self._request(command, arguments, [])

    async def pass_fd(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of an open descriptor, under a name. Raises: VmmFailed."""
        await self._request("getfd", {"fdname": name}, [descriptor])

    async def _request(
        self, command: str, arguments: dict[str, object], descriptors: list[int]
    ) -> Any:
        self._next_id += 1
        number = self._next_id
        answer = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        request = {"execute": command, "arguments": arguments, "id": number}
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                await self._send(json.dumps(request).encode() + b"\n", descriptors)
                return await answer
        except (TimeoutError, OSError) as error:
            raise VmmFailed(f"QEMU did not answer `{command}`: {error!r}") from error
        finally:
            self._pending.pop(number, None)

    async def _send(self, line: bytes, descriptors: list[int]) -> None:
        if descriptors:
            # asyncio's streams cannot pass descriptors. All earlier lines were drained, because
            # `connect` sets the buffer limit to 0, so none is overtaken.
            sent = socket.send_fds(self._socket, [line], descriptors)
            line = line[sent:]
        self._writer.write(line)
        await self._writer.drain()

    async def close(self) -> None:
        """Close the connection."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        try:
            while True:
                self._dispatch(await self._read_message())
        except (EOFError, OSError, ValueError):
            pass
        finally:
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the control socket is closed"))
            self._writer.close()

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "event" in message:
            data = message.get("data")
            self._on_event(str(message["event"]), data if isinstance(data, dict) else {})
            return
        number = message.get("id")
        answer = self._pending.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return
        if "error" in message:
            description = str(message["error"])[:400]
            answer.set_exception(VmmFailed(f"QEMU error: {description}"))
        else:
            answer.set_result(message.get("return"))

    async def _read_message(self) -> dict[str, Any]:
        """Read a line. Raises: EOFError, ValueError (also for a line that is too long)."""
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the control socket is closed")
        try:
            message = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("not an object")
        return message
