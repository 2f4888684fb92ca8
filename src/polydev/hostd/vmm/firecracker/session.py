"""One Firecracker process as the agent holds it: jail, API, console, complaints and metrics.

The driver starts one or takes one over, the probe starts one; both get the same promises: when the
process has ended, whoever ended it, its pipes, its jail, its cgroup and its identity are gone; and
one that no longer answers is ended.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.errors import VmmFailed
from polydev.hostd.logs import harmless
from polydev.hostd.vmm.console import (
    CONSOLE_LOG_BYTES,
    ERROR_LOG_BYTES,
    BoundedLog,
    Marker,
    Reader,
)
from polydev.hostd.vmm.firecracker import ends, jail
from polydev.hostd.vmm.firecracker.api import Api, NotListening
from polydev.hostd.vmm.firecracker.cgroup import Cgroups
from polydev.hostd.vmm.firecracker.jail import Jailed
from polydev.hostd.vmm.firecracker.jailer import API_SOCKET
from polydev.hostd.vmm.vmm import ExitReport

METRICS_LOG = "metrics.log"
_METRICS_LOG_BYTES = 128 * 1024
_API_LIMIT_S = 30.0
_LOOK_EVERY_S = 0.002
WATCH_EVERY_S = 20.0
_MISSES = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where a VMM has its things on this host, and whose they are."""

    folder: Path
    uid: int
    name: str
    """Of its cgroup."""
    cgroups: Cgroups


class Session:
    """Made by `start` or `resume`; over when `ended` returns, or after `close`."""

    def __init__(self, place: Place, jailed: Jailed, marker: Marker) -> None:
        self.place = place
        self.process = jailed.process
        self.root = jailed.root
        self.marker = marker
        folder = place.folder
        self._console = Reader(BoundedLog(folder / "console.log", CONSOLE_LOG_BYTES), marker)
        self.host_full = Marker(os.strerror(errno.ENOSPC))
        """Seen when the guest could not write because the host's disk is full."""
        self._errors = Reader(BoundedLog(folder / "error.log", ERROR_LOG_BYTES), self.host_full)
        self._metrics = Reader(BoundedLog(folder / METRICS_LOG, _METRICS_LOG_BYTES))
        self._held = ExitStack()
        self._pipes: ends.FirecrackerEnds | None = None
        self._api: Api | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._end: asyncio.Task[ExitReport] | None = None
        self._verdict = ""

    @classmethod
    async def start(cls, place: Place, starting: Callable[[], Jailed], marker: Marker) -> Session:
        """Start a process by the blocking `starting`, and return when its API has answered.

        The pipes are there already. Raises: VmmFailed, MissingImage, OSError.
        """
        session = cls(place, await _started(starting), marker)
        await session._take_up(remember=True)
        return session

    @classmethod
    async def resume(cls, place: Place, jailed: Jailed) -> Session:
        """Take one over that another agent started. Raises: VmmFailed, after ending it."""
        session = cls(place, jailed, Marker("-"))
        session.marker.seen.set()
        await session._take_up(remember=False)
        return session

    @property
    def api(self) -> Api:
        """Raises: VmmFailed when the session is over."""
        if self._api is None:
            raise VmmFailed("The VMM has ended")
        return self._api

    @property
    def last_words(self) -> str:
        """Why it ended, as far as it or we can say, in one harmless line."""
        return " | ".join(filter(None, (self._verdict, _one_line(self._errors.log.tail))))

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
        """End the process, and return when it has ended and nothing of it is left."""
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
        """Listen to a process that was just started or found. Ends it when that fails."""
        self._end = asyncio.create_task(self._tidy_at_end())
        try:
            if remember:
                identity = self.process.identity
                await asyncio.to_thread(identity.write, self.place.folder)
            self._listen()
            await self._or_end(self._connect())
        except (OSError, VmmFailed) as error:  # TimeoutError is an OSError
            await self.kill()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise VmmFailed(
                f"Firecracker did not start: {self.last_words or self.last_lines or error}",
                hint="See what `polydev doctor` says about the driver",
            ) from error
        except BaseException:
            await self.kill()
            raise
        self._tasks.append(asyncio.create_task(self._watch()))

    def _listen(self) -> None:
        pipes = self._pipes = self._held.enter_context(ends.opened(self.place.folder))
        for reader, fifo in (
            (self._console, pipes.console),
            (self._errors, pipes.errors),
            (self._metrics, pipes.metrics),
        ):
            self._tasks.append(asyncio.create_task(reader.read_errors(fifo)))

    async def _or_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, unless the process ends before. Raises: VmmFailed."""
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({working, self._ending}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise VmmFailed("it ended")
            working.result()
        finally:
            working.cancel()

    async def _connect(self) -> None:
        """Wait for the API and its first answer.

        It is looked for often: the VMM makes its socket and listens at it in two steps, and nothing
        tells of the second. Raises: VmmFailed, TimeoutError.
        """
        async with asyncio.timeout(_API_LIMIT_S):
            while True:
                with suppress(FileNotFoundError):
                    at = jail.opened_socket(self.root, API_SOCKET, self.place.uid)
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
            self._held.callback(os.close, at)
            self._api = Api.over(f"/proc/self/fd/{at}")
            while True:
                with suppress(NotListening):
                    await self._api.state()
                    return
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _watch(self) -> None:
        """End a process that does not answer: its guest cannot be looked after any more."""
        misses = 0
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self.api.is_busy:  # with a request that has a limit of its own
                continue
            try:
                await self.api.state()
                misses = 0
            except VmmFailed as error:
                misses += 1
                if misses == _MISSES:
                    self._verdict = f"It was ended because it hung: {error.message}"
                    await self.process.kill()

    @property
    def _ending(self) -> asyncio.Task[ExitReport]:
        assert self._end is not None  # noqa: S101 - made first of all
        return self._end

    async def _tidy_at_end(self) -> ExitReport:
        """Wait for the end, read what is left to read, leave nothing."""
        status = await self.process.ended()
        await self._hang_up()
        await remove_traces(self.place)
        return ExitReport(status, self.last_words)

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._api is not None:
            await self._api.close()
            self._api = None
        if self._pipes is not None:
            await self._console.drain_errors(self._pipes.console)
            await self._errors.drain_errors(self._pipes.errors)
            self._pipes = None
        self._held.close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
        self.process.release()


async def remove_traces(place: Place) -> None:
    """Remove what a VMM that has ended leaves on the host, all but its logs."""
    await asyncio.to_thread(ends.remove_from, place.folder)
    await asyncio.to_thread(jail.remove_from, place.folder)
    await place.cgroups.remove(place.name)


async def _started(starting: Callable[[], Jailed]) -> Jailed:
    """Start the process; a caller that is cancelled meanwhile leaves none behind."""
    running = asyncio.ensure_future(asyncio.to_thread(starting))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        jailed = await running
        await jailed.process.kill()
        jailed.process.release()
        os.close(jailed.root)
        raise


def _one_line(content: bytes) -> str:
    return " | ".join(harmless(content.decode("utf-8", "replace")).split("\n")).strip(" |")[-1000:]
