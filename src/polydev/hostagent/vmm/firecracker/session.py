"""One Firecracker process as the agent sees it: jail, API, console, errors, metrics.

The driver starts or adopts one, the probe starts one. Once the process has ended, however it ended,
its pipes, jail, cgroup and identity file are removed. A process that stops answering is killed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from polydev.hostagent.system.cancellation import run_in_thread_shielded, shielded_or_undo
from polydev.hostagent.vmm.console import BoundedLog, LogReader, Marker
from polydev.hostagent.vmm.firecracker import ipc
from polydev.hostagent.vmm.firecracker.api import Api, NotListening
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.firecracker.jail.cgroup import JailerCgroups
from polydev.hostagent.vmm.firecracker.jail.jail import JailedProcess
from polydev.hostagent.vmm.firecracker.jail.jailer import API_SOCKET
from polydev.hostagent.vmm.vmm_session import VmmSession
from polydev.shared.errors import VmmFailed
from polydev.shared.hints import Hint

METRICS_LOG = "metrics.log"
_METRICS_LOG_BYTES = 128 * 1024
_API_LIMIT_S = 30.0
_POLL_EVERY_S = 0.002
WATCH_EVERY_S = 20.0
_MAX_MISSES = 3


@dataclass(frozen=True, slots=True)
class VmmLocation:
    """Folder, user and cgroup of one VMM on this host."""

    folder: Path
    uid: int
    name: str
    """Name of its cgroup."""
    cgroups: JailerCgroups


class FirecrackerSession(VmmSession):
    """Created by `start` or `resume`."""

    vmm = "Firecracker"
    hint = Hint.SEE_DRIVER.text()

    def __init__(self, location: VmmLocation, jailed: JailedProcess, marker: Marker) -> None:
        disk_full_marker = Marker(os.strerror(errno.ENOSPC))
        super().__init__(location.folder, jailed.process, marker, disk_full_marker)
        self.host_disk_full = disk_full_marker.seen
        self.location = location
        self.root = jailed.root
        self._metrics = LogReader(BoundedLog(location.folder / METRICS_LOG, _METRICS_LOG_BYTES))
        self._resources = ExitStack()
        self._pipes: ipc.FirecrackerEndpoints | None = None
        self._api: Api | None = None
        self._kill_reason = ""

    @classmethod
    async def start(
        cls, location: VmmLocation, starting: Callable[[], JailedProcess], marker: Marker
    ) -> FirecrackerSession:
        """Start a process with the blocking `starting`; return once its API answers.

        The pipes exist already. Raises: VmmFailed, MissingImage, OSError.
        """
        jailed = await shielded_or_undo(asyncio.to_thread(starting), _kill)
        session = cls(location, jailed, marker)
        await session._attach(write_identity=True)
        return session

    @classmethod
    async def resume(cls, location: VmmLocation, jailed: JailedProcess) -> FirecrackerSession:
        """Attach to a VMM of an earlier agent; kill it on VmmFailed."""
        session = cls(location, jailed, Marker("-"))
        session.marker.seen.set()
        await session._attach(write_identity=False)
        return session

    @property
    def api(self) -> Api:
        """The API client. Raises: VmmFailed when the session is over."""
        if self._api is None:
            raise VmmFailed("The VMM has ended")
        return self._api

    @property
    def last_errors(self) -> str:
        """The reason for the exit, as far as known, as one printable line."""
        return " | ".join(filter(None, (self._kill_reason, super().last_errors)))

    def move(self, folder: Path) -> None:
        super().move(folder)
        self.location = replace(self.location, folder=folder)
        self._metrics.log.move(folder / METRICS_LOG)

    def _start_readers(self) -> None:
        pipes = self._pipes = self._resources.enter_context(
            ipc.open_endpoints(self.location.folder)
        )
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
        """Wait for the API and its first answer. Raises: VmmFailed, TimeoutError.

        Polled at short intervals: the VMM creates its socket and listens on it in two steps, and
        nothing signals the second.
        """
        async with asyncio.timeout(_API_LIMIT_S):
            while True:
                with suppress(FileNotFoundError):
                    at = jail.open_socket(self.root, API_SOCKET, self.location.uid)
                    break
                await asyncio.sleep(_POLL_EVERY_S)
            self._resources.callback(os.close, at)
            self._api = Api.over(f"/proc/self/fd/{at}")
            while True:
                with suppress(NotListening):
                    await self._api.state()
                    return
                await asyncio.sleep(_POLL_EVERY_S)

    async def _watch(self) -> None:
        """Kill a process that stops answering: its guest is out of control."""
        misses = 0
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self.api.is_busy:  # with a request that has its own time limit
                continue
            try:
                await self.api.state()
                misses = 0
            except VmmFailed as error:
                misses += 1
                if misses == _MAX_MISSES:
                    self._kill_reason = f"Killed because it stopped answering: {error.message}"
                    await self.process.kill()

    async def _close_connections(self) -> None:
        if self._api is not None:
            await self._api.close()
            self._api = None
        if self._pipes is not None:
            await self._console.drain_pipe(self._pipes.console)
            await self._errors.drain_pipe(self._pipes.errors)
            self._pipes = None
        self._resources.close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    async def _remove_files(self) -> None:
        await remove_vmm_files(self.location)


async def remove_vmm_files(location: VmmLocation) -> None:
    """Remove everything that an ended VMM leaves on the host, except its logs."""
    await run_in_thread_shielded(ipc.remove_files, location.folder)
    await run_in_thread_shielded(jail.remove_mountpoint, location.folder)
    await location.cgroups.remove(location.name)


async def _kill(jailed: JailedProcess) -> None:
    os.close(jailed.root)
    await jailed.process.kill()
    jailed.process.release()
