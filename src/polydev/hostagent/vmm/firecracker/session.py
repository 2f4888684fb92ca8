"""One Firecracker process as the agent holds it: jail, API, console, complaints and metrics.

The driver starts one or takes one over, the probe starts one; both get the same promises: when the
process has ended, whoever ended it, its pipes, its jail, its cgroup and its identity are gone; and
one that no longer answers is ended.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from polydev.hostagent.system.cancellation import in_thread, or_undone
from polydev.hostagent.vmm.console import BoundedLog, Marker, Reader
from polydev.hostagent.vmm.firecracker import ipc
from polydev.hostagent.vmm.firecracker.api import Api, NotListening
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.firecracker.jail.cgroup import Cgroups
from polydev.hostagent.vmm.firecracker.jail.jail import Jailed
from polydev.hostagent.vmm.firecracker.jail.jailer import API_SOCKET
from polydev.hostagent.vmm.vmm_session import Session
from polydev.shared.errors import VmmFailed

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


class FirecrackerSession(Session):
    """Made by `start` or `resume`."""

    vmm = "Firecracker"
    hint = "See what `polydev doctor` says about the driver"

    def __init__(self, place: Place, jailed: Jailed, marker: Marker) -> None:
        no_room = Marker(os.strerror(errno.ENOSPC))
        super().__init__(place.folder, jailed.process, marker, no_room)
        self.host_full = no_room.seen
        self.place = place
        self.root = jailed.root
        self._metrics = Reader(BoundedLog(place.folder / METRICS_LOG, _METRICS_LOG_BYTES))
        self._held = ExitStack()
        self._pipes: ipc.FirecrackerEnds | None = None
        self._api: Api | None = None
        self._verdict = ""

    @classmethod
    async def start(
        cls, place: Place, starting: Callable[[], Jailed], marker: Marker
    ) -> FirecrackerSession:
        """Start a process by the blocking `starting`, and return when its API has answered.

        The pipes are there already. Raises: VmmFailed, MissingImage, OSError.
        """
        jailed = await or_undone(asyncio.to_thread(starting), _end)
        session = cls(place, jailed, marker)
        await session._take_up(remember=True)
        return session

    @classmethod
    async def resume(cls, place: Place, jailed: Jailed) -> FirecrackerSession:
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
        return " | ".join(filter(None, (self._verdict, super().last_words)))

    def move(self, folder: Path) -> None:
        super().move(folder)
        self.place = replace(self.place, folder=folder)
        self._metrics.log.move(folder / METRICS_LOG)

    def _listen(self) -> None:
        pipes = self._pipes = self._held.enter_context(ipc.opened(self.place.folder))
        for reader, fifo in (
            (self._console, pipes.console),
            (self._errors, pipes.errors),
            (self._metrics, pipes.metrics),
        ):
            self._tasks.append(asyncio.create_task(reader.read_errors(fifo)))

    async def _connect(self) -> None:
        await self._reach_api()
        self._tasks.append(asyncio.create_task(self._watch()))

    async def _reach_api(self) -> None:
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

    async def _let_go(self) -> None:
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

    async def _remove_traces(self) -> None:
        await remove_traces(self.place)


async def remove_traces(place: Place) -> None:
    """Remove what a VMM that has ended leaves on the host, all but its logs."""
    await in_thread(ipc.remove_from, place.folder)
    await in_thread(jail.remove_from, place.folder)
    await place.cgroups.remove(place.name)


async def _end(jailed: Jailed) -> None:
    os.close(jailed.root)
    await jailed.process.kill()
    jailed.process.release()
