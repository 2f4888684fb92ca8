"""One VMM process as the agent sees it: identity, console, error output, exit.

Each driver's `session.py` says how to reach its VMM and which files it leaves. Every session
guarantees: the console is read from the start, the last error output is known, and once the process
has ended, however it ended, only its logs remain on the host.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.system.logs import harmless
from polydev.hostagent.vmm.console import (
    CONSOLE_LOG_BYTES,
    ERROR_LOG_BYTES,
    BoundedLog,
    LogReader,
    Marker,
)
from polydev.hostagent.vmm.contract import ExitReport
from polydev.hostagent.vmm.process import VmmProcess
from polydev.shared.errors import VmmFailed

_DRAIN_LIMIT_S = 5
_EXIT_GRACE_S = 0.5
"""A process that closed its connection may be about to exit."""
_CONSOLE, _ERRORS = "console.log", "error.log"


class VmmSession(ABC):
    """Attached to a VMM process until `ended` returns, or until `detach`."""

    vmm: ClassVar[str]
    """The VMM's name, for error messages."""
    hint: ClassVar[str]

    def __init__(
        self, folder: Path, running: VmmProcess, marker: Marker, error_marker: Marker | None = None
    ) -> None:
        """`marker` is searched for in the console, `error_marker` in the error output."""
        self.folder = folder
        self.process = running
        self.marker = marker
        self.host_disk_full = asyncio.Event()
        """Set when the guest fails to write because the host's disk is full."""
        self._console = LogReader(BoundedLog(folder / _CONSOLE, CONSOLE_LOG_BYTES), marker)
        self._errors = LogReader(BoundedLog(folder / _ERRORS, ERROR_LOG_BYTES), error_marker)
        self._tasks: list[asyncio.Task[None]] = []
        self._draining_tasks: set[asyncio.Task[None]] = set()
        """Those of `_tasks` that end once they have read the last output."""
        self._end: asyncio.Task[ExitReport] | None = None

    @property
    def last_errors(self) -> str:
        """The end of the error output, as one printable line."""
        return _one_line(self._errors.log.tail)

    @property
    def last_console_output(self) -> str:
        """The end of the console, as one printable line."""
        return _one_line(self._console.log.tail)

    def move(self, folder: Path) -> None:
        """Switch to the machine's renamed folder."""
        self.folder = folder
        self._console.log.move(folder / _CONSOLE)
        self._errors.log.move(folder / _ERRORS)

    async def ended(self) -> ExitReport:
        """Wait for the exit and for the clean-up after it."""
        if self._end is None:
            raise VmmFailed("The session is closed")
        return await asyncio.shield(self._end)

    async def abort_start(self, error: BaseException) -> None:
        """Kill a process whose start failed with `error`, which the caller re-raises.

        Raises: VmmFailed with the process's last output instead, if it had already ended.
        """
        try:
            if isinstance(error, VmmFailed) and self._end is not None:
                await asyncio.wait({self._end}, timeout=_EXIT_GRACE_S)
            had_ended = self.process.has_ended
        finally:
            await self.kill()
        if had_ended and isinstance(error, VmmFailed):
            raise self._start_error(error) from error

    def _start_error(self, error: Exception) -> VmmFailed:
        reason = self.last_errors or self.last_console_output or error
        return VmmFailed(f"{self.vmm} did not start: {reason}", hint=self.hint)

    async def kill(self) -> None:
        """Kill the process; return once it has ended and its files are removed.

        Shielded from cancellation: the caller goes on to remove the machine's folder.
        """
        await run_shielded(self._kill())

    async def detach(self) -> None:
        """Release the process, which runs on."""
        if self._end is not None and not self._end.done():
            self._end.cancel()
            with suppress(asyncio.CancelledError):
                await self._end
            await self._disconnect()
        self._end = None

    @abstractmethod
    def _start_readers(self) -> None:
        """Start tasks that read the process's output. Raises: OSError."""

    @abstractmethod
    async def _connect(self) -> None:
        """Connect to the process and wait for its answer. Raises: VmmFailed, OSError.

        Cancelled when the process ends.
        """

    @abstractmethod
    async def _close_connections(self) -> None:
        """Drain the pipes, and close all that `_start_readers` and `_connect` opened."""

    @abstractmethod
    async def _remove_files(self) -> None:
        """Remove what the ended process leaves on the host."""

    async def _attach(self, *, write_identity: bool) -> None:
        """Connect to a process that was just started or found; kill it on failure."""
        try:
            try:
                self._start_readers()
                if write_identity:
                    identity = self.process.identity
                    await run_in_thread_shielded(identity.write, self.folder)
            finally:  # a process that ends at once is cleaned up only after its identity is written
                self._end = asyncio.create_task(self._clean_up_at_exit())
            await self._connected()
        except (OSError, VmmFailed) as error:  # TimeoutError is an OSError
            await self.kill()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise self._start_error(error) from error
        except BaseException:
            await self.kill()
            raise

    async def _connected(self) -> None:
        """Connect, unless the process ends first. Raises: VmmFailed, and as `_connect`."""
        connecting = asyncio.create_task(self._connect())
        self._tasks.append(connecting)  # ends before its connections are closed
        await asyncio.wait({connecting})
        if connecting.cancelled():
            raise VmmFailed("the process ended")
        connecting.result()

    async def _kill(self) -> None:
        if self._end is not None and not self._end.done():
            await self.process.kill()
        await self.ended()

    async def _clean_up_at_exit(self) -> ExitReport:
        status = await self.process.ended()
        if self._draining_tasks:
            await asyncio.wait(self._draining_tasks, timeout=_DRAIN_LIMIT_S)
        await self._disconnect()
        await self._remove_files()
        return ExitReport(status, self.last_errors)

    async def _disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._close_connections()
        self.process.release()


def _one_line(content: bytes) -> str:
    return " | ".join(harmless(content.decode("utf-8", "replace")).split("\n")).strip(" |")[-1000:]
