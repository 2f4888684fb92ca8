"""One VMM process as the agent holds it, whichever VMM it is: identity, console, complaints, end.

Each driver's `session.py` says how its VMM is reached and what it leaves; a session of any gives
the same promises: its guest is heard from the start, what the process said last is known, and when
it has ended, whoever ended it, nothing of it is left on the host but its logs.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from polydev.hostagent.health.logs import harmless
from polydev.hostagent.system.cancellation import in_thread, to_its_end
from polydev.hostagent.vmm.console import (
    CONSOLE_LOG_BYTES,
    ERROR_LOG_BYTES,
    BoundedLog,
    Marker,
    Reader,
)
from polydev.hostagent.vmm.contract import ExitReport
from polydev.hostagent.vmm.process import VmmProcess
from polydev.shared.errors import VmmFailed

_LAST_WORDS_S = 5
_END_S = 0.5
"""One that has hung up may be about to end."""
_CONSOLE, _ERRORS = "console.log", "error.log"


class VmmSession(ABC):
    """Over when `ended` returns, or after `close`."""

    vmm: ClassVar[str]
    """The VMM's name, and what to do when it does not start, for whoever reads the error."""
    hint: ClassVar[str]

    def __init__(
        self, folder: Path, running: VmmProcess, marker: Marker, complaint: Marker | None = None
    ) -> None:
        """`marker` is looked for in what the guest prints, `complaint` in what the VMM says."""
        self.folder = folder
        self.process = running
        self.marker = marker
        self.host_disk_full = asyncio.Event()
        """Set when the guest could not write because the host's disk is full."""
        self._console = Reader(BoundedLog(folder / _CONSOLE, CONSOLE_LOG_BYTES), marker)
        self._errors = Reader(BoundedLog(folder / _ERRORS, ERROR_LOG_BYTES), complaint)
        self._tasks: list[asyncio.Task[None]] = []
        self._draining_tasks: set[asyncio.Task[None]] = set()
        """Those of `_tasks` that end when they have read the last that the process said."""
        self._end: asyncio.Task[ExitReport] | None = None

    @property
    def last_errors(self) -> str:
        """What the VMM complained of last, in one harmless line."""
        return _one_line(self._errors.log.tail)

    @property
    def last_console_output(self) -> str:
        """What the guest printed last, in one harmless line."""
        return _one_line(self._console.log.tail)

    def move(self, folder: Path) -> None:
        """The machine's folder was renamed: what there is of the process is there now."""
        self.folder = folder
        self._console.log.move(folder / _CONSOLE)
        self._errors.log.move(folder / _ERRORS)

    async def ended(self) -> ExitReport:
        """Wait for the end, and for everything to be tidied up."""
        if self._end is None:
            raise VmmFailed("The session was closed")
        return await asyncio.shield(self._end)

    async def abort_start(self, error: BaseException) -> None:
        """End a process whose start went wrong by `error`, which the caller goes on to raise.

        Raises: VmmFailed with its last words instead, where it had ended by itself.
        """
        try:
            if isinstance(error, VmmFailed) and self._end is not None:
                await asyncio.wait({self._end}, timeout=_END_S)
            had_ended = self.process.has_ended
        finally:
            await self.kill()
        if had_ended and isinstance(error, VmmFailed):
            raise self._start_error(error) from error

    def _start_error(self, error: Exception) -> VmmFailed:
        words = self.last_errors or self.last_console_output or error
        return VmmFailed(f"{self.vmm} did not start: {words}", hint=self.hint)

    async def kill(self) -> None:
        """End the process, and return when it has ended and nothing of it is left, also when
        cancelled: whoever undoes a machine goes on to remove its folder."""
        await to_its_end(self._kill())

    async def detach(self) -> None:
        """Let go of the process: it goes on."""
        if self._end is not None and not self._end.done():
            self._end.cancel()
            with suppress(asyncio.CancelledError):
                await self._end
            await self._disconnect()
        self._end = None

    @abstractmethod
    def _start_readers(self) -> None:
        """Have what the process says read, by tasks of `_tasks`. Raises: OSError."""

    @abstractmethod
    async def _connect(self) -> None:
        """Reach the process, and return when it has answered. Raises: VmmFailed, OSError.

        It is cancelled when the process ends.
        """

    @abstractmethod
    async def _close_connections(self) -> None:
        """Read what is left in the pipes, and close all that `_listen` and `_connect` opened."""

    @abstractmethod
    async def _remove_files(self) -> None:
        """Remove what the process, which has ended, leaves on the host."""

    async def _attach(self, *, remember: bool) -> None:
        """Reach a process that was just started or found. Ends it when that fails."""
        try:
            try:
                self._start_readers()
                if remember:
                    identity = self.process.identity
                    await in_thread(identity.write, self.folder)
            finally:  # not before: one that ends at once would be tidied up while this goes on
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
        """Connect, unless the process ends before. Raises: VmmFailed, and what `_connect` does."""
        connecting = asyncio.create_task(self._connect())
        self._tasks.append(connecting)  # it is over before what it opened is let go
        await asyncio.wait({connecting})
        if connecting.cancelled():
            raise VmmFailed("it ended")
        connecting.result()

    async def _kill(self) -> None:
        if self._end is not None and not self._end.done():
            await self.process.kill()
        await self.ended()

    async def _clean_up_at_exit(self) -> ExitReport:
        status = await self.process.ended()
        if self._draining_tasks:
            await asyncio.wait(self._draining_tasks, timeout=_LAST_WORDS_S)
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
