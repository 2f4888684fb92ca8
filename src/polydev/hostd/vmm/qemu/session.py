"""One QEMU process as the agent holds it: control socket, console and complaints.

The driver starts one or takes one over, the probe starts one; both get the same promises: the
guest stands still until somebody listens to its console, and when the process has ended, whoever
ended it, its sockets and its identity are gone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from polydev.errors import VmmFailed
from polydev.hostd.logs import harmless
from polydev.hostd.vmm.qemu import ends, process
from polydev.hostd.vmm.qemu.command import PROGRAM
from polydev.hostd.vmm.qemu.console import (
    CONSOLE_LOG_BYTES,
    ERROR_LOG_BYTES,
    BoundedLog,
    Marker,
    Reader,
)
from polydev.hostd.vmm.qemu.qmp import Qmp
from polydev.hostd.vmm.vmm import ExitReport

_LAST_CONSOLE_S = 5


class Session:
    """Made by `start` or `resume`; over when `ended` returns, or after `close`."""

    def __init__(self, folder: Path, running: process.VmmProcess, marker: Marker) -> None:
        self.folder = folder
        self.process = running
        self.marker = marker
        self.host_full = asyncio.Event()
        """Set when the guest could not write because the host's disk is full."""
        self.migration_news = asyncio.Event()
        """Set whenever a snapshot that QEMU writes or reads comes a step further."""
        self._console = Reader(BoundedLog(folder / "console.log", CONSOLE_LOG_BYTES), marker)
        self._errors = Reader(BoundedLog(folder / "error.log", ERROR_LOG_BYTES))
        self._fifo = -1
        self._qmp: Qmp | None = None
        self._console_socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._end: asyncio.Task[ExitReport] | None = None

    @classmethod
    async def start(
        cls,
        folder: Path,
        argv: Sequence[str],
        descriptors: Sequence[int],
        given: ends.QemuEnds,
        marker: Marker,
    ) -> Session:
        """Start QEMU, paused, and return when it has answered. Raises: VmmFailed, OSError."""
        handed = [*descriptors, given.qmp.fileno(), given.console.fileno()]
        running = await _started(argv, handed, given.errors, folder)
        # Our copies must go before we connect: a QEMU that has ended refuses, and does not keep us.
        given.qmp.close()
        given.console.close()
        session = cls(folder, running, marker)
        await session._take_up(remember=True)
        return session

    @classmethod
    async def resume(cls, folder: Path, running: process.VmmProcess) -> Session:
        """Take a QEMU over that another agent started. Raises: VmmFailed, after ending it."""
        session = cls(folder, running, Marker("-"))
        session.marker.seen.set()
        await session._take_up(remember=False)
        return session

    @property
    def qmp(self) -> Qmp:
        """The control connection. Raises: VmmFailed when the session is over."""
        if self._qmp is None:
            raise VmmFailed("The VMM has ended")
        return self._qmp

    @property
    def last_words(self) -> str:
        """What QEMU complained of last, in one harmless line."""
        return _one_line(self._errors.log.tail)

    @property
    def last_lines(self) -> str:
        """What the guest printed last, in one harmless line."""
        return _one_line(self._console.log.tail)

    async def ended(self) -> ExitReport:
        """Wait for the end, and for everything to be tidied up."""
        if self._end is None:
            raise VmmFailed("The session was closed")
        return await asyncio.shield(self._end)

    async def kill(self) -> None:
        """End the process, and return when it has ended and its sockets are gone."""
        if self._end is not None and not self._end.done():
            await self.process.kill()
        await self.ended()

    async def close(self) -> None:
        """Let go of the process: it goes on."""
        if self._end is not None and not self._end.done():
            self._end.cancel()
            with suppress(asyncio.CancelledError):
                await self._end
            await self._hang_up()
        self._end = None

    async def _take_up(self, *, remember: bool) -> None:
        """Connect to a process that was just started or found. Ends it when that fails."""
        self._end = asyncio.create_task(self._tidy_at_end())
        try:
            if remember:
                identity = self.process.identity
                await asyncio.to_thread(identity.write, self.folder)
            self._fifo = ends.open_errors(self.folder)
            self._tasks.append(asyncio.create_task(self._errors.read_errors(self._fifo)))
            await self._connect()
        except (OSError, VmmFailed) as error:  # TimeoutError is an OSError
            await self.kill()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise VmmFailed(
                f"QEMU did not start: {self.last_words or error}",
                hint=f"See whether `{PROGRAM} --version` works on this host",
            ) from error
        except BaseException:
            await self.kill()
            raise

    async def _connect(self) -> None:
        """Control and console; whichever comes first, an answer or the end."""
        connecting = asyncio.create_task(self._greet())
        try:
            await asyncio.wait({connecting, self._ending}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise VmmFailed("it ended")
            self._qmp = connecting.result()
        finally:
            connecting.cancel()
        self._console_socket = await ends.connect(self.folder, ends.CONSOLE_SOCKET)
        reading = self._console.read_console(self._console_socket)
        self._tasks.append(asyncio.create_task(reading))

    @property
    def _ending(self) -> asyncio.Task[ExitReport]:
        assert self._end is not None  # noqa: S101 - made first of all
        return self._end

    async def _greet(self) -> Qmp:
        return await Qmp.over(await ends.connect(self.folder, ends.QMP_SOCKET), self._on_event)

    async def _tidy_at_end(self) -> ExitReport:
        """Wait for the end, read what is left to read, leave nothing."""
        status = await self.process.ended()
        if self._tasks[1:]:
            await asyncio.wait(self._tasks[1:], timeout=_LAST_CONSOLE_S)
        await self._hang_up()
        await asyncio.to_thread(ends.remove_from, self.folder)
        return ExitReport(status, self.last_words)

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None
        if self._console_socket is not None:
            self._console_socket.close()
        if self._fifo >= 0:
            await self._errors.drain_errors(self._fifo)
            os.close(self._fifo)
            self._fifo = -1
        self.process.release()

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        # `nospace` is only told of drives that stop the machine; the reason is strerror(3)'s.
        if name == "BLOCK_IO_ERROR" and data.get("reason") == os.strerror(errno.ENOSPC):
            self.host_full.set()
        if name == "MIGRATION":
            self.migration_news.set()


async def _started(
    argv: Sequence[str], descriptors: Sequence[int], errors: int, folder: Path
) -> process.VmmProcess:
    """Start the process; a caller that is cancelled meanwhile leaves none behind."""
    starting = asyncio.ensure_future(
        asyncio.to_thread(process.start, argv, descriptors, errors, folder)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        running = await starting
        await running.kill()
        running.release()
        raise


def _one_line(content: bytes) -> str:
    return " | ".join(harmless(content.decode("utf-8", "replace")).split("\n")).strip(" |")[-1000:]
