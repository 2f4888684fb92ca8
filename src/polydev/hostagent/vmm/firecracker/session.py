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
from polydev.hostagent.vmm.firecracker.jail.cgroup import JailerCgroups
from polydev.hostagent.vmm.firecracker.jail.jail import JailedProcess
from polydev.hostagent.vmm.firecracker.jail.jailer import API_SOCKET
from polydev.hostagent.vmm.vmm_session import VmmSession
from polydev.shared.errors import VmmFailed

METRICS_LOG = "metrics.log"
_METRICS_LOG_BYTES = 128 * 1024
_API_LIMIT_S = 30.0
_LOOK_EVERY_S = 0.002
WATCH_EVERY_S = 20.0
_MISSES = 3


@dataclass(frozen=True, slots=True)
class VmmLocation:
    """Where a VMM has its things on this host, and whose they are."""

    folder: Path
    uid: int
    name: str
    """Of its cgroup."""
    cgroups: JailerCgroups


class FirecrackerSession(VmmSession):
    """Made by `start` or `resume`."""

    vmm = "Firecracker"
    hint = "See what `polydev doctor` says about the driver"

    def __init__(self, location: VmmLocation, jailed: JailedProcess, marker: Marker) -> None:
        no_room = Marker(os.strerror(errno.ENOSPC))
        super().__init__(location.folder, jailed.process, marker, no_room)
        self.host_disk_full = no_room.seen
        self.location = location
        self.root = jailed.root
        self._metrics = Reader(BoundedLog(location.folder / METRICS_LOG, _METRICS_LOG_BYTES))
        self._held = ExitStack()
        self._pipes: ipc.FirecrackerEndpoints | None = None
        self._api: Api | None = None
        self._verdict = ""

    @classmethod
    async def start(
        cls, location: VmmLocation, starting: Callable[[], JailedProcess], marker: Marker
    ) -> FirecrackerSession:
        """Start a process by the blocking `starting`, and return when its API has answered.

        The pipes are there already. Raises: VmmFailed, MissingImage, OSError.
        """
        jailed = await or_undone(asyncio.to_thread(starting), _end)
        session = cls(location, jailed, marker)
        await session._attach(remember=True)
        return session

    @classmethod
    async def resume(cls, location: VmmLocation, jailed: JailedProcess) -> FirecrackerSession:
        """Take one over that another agent started. Raises: VmmFailed, after ending it."""
        session = cls(location, jailed, Marker("-"))
        session.marker.seen.set()
        await session._attach(remember=False)
        return session

    @property
    def api(self) -> Api:
        """Raises: VmmFailed when the session is over."""
        if self._api is None:
            raise VmmFailed("The VMM has ended")
        return self._api

    @property
    def last_errors(self) -> str:
        """Why it ended, as far as it or we can say, in one harmless line."""
        return " | ".join(filter(None, (self._verdict, super().last_errors)))

    def move(self, folder: Path) -> None:
        super().move(folder)
        self.location = replace(self.location, folder=folder)
        self._metrics.log.move(folder / METRICS_LOG)

    def _start_readers(self) -> None:
        pipes = self._pipes = self._held.enter_context(ipc.open_endpoints(self.location.folder))
        for reader, fifo in (
            (self._console, pipes.console),
            (self._errors, pipes.errors),
            (self._metrics, pipes.metrics),
        ):
            self._tasks.append(asyncio.create_task(reader.read_pipe(fifo)))

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
                    at = jail.open_socket(self.root, API_SOCKET, self.location.uid)
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

    async def _close_connections(self) -> None:
        if self._api is not None:
            await self._api.close()
            self._api = None
        if self._pipes is not None:
            await self._console.drain_pipe(self._pipes.console)
            await self._errors.drain_pipe(self._pipes.errors)
            self._pipes = None
        self._held.close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    async def _remove_files(self) -> None:
        await remove_vmm_files(self.location)


async def remove_vmm_files(location: VmmLocation) -> None:
    """Remove what a VMM that has ended leaves on the host, all but its logs."""
    await in_thread(ipc.remove_files, location.folder)
    await in_thread(jail.remove_mountpoint, location.folder)
    await location.cgroups.remove(location.name)


async def _end(jailed: JailedProcess) -> None:
    os.close(jailed.root)
    await jailed.process.kill()
    jailed.process.release()
