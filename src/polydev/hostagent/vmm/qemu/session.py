"""One QEMU process as the agent sees it: control socket, console, error output.

The driver starts or adopts one, the probe starts one. The guest stays paused until its console is
read; once the process has ended, however it ended, its sockets and identity file are removed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polydev.hostagent.system.cancellation import run_in_thread_shielded, shielded_or_undo
from polydev.hostagent.vmm import process
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.qemu import ipc
from polydev.hostagent.vmm.qemu.command import PROGRAM
from polydev.hostagent.vmm.qemu.qmp import Qmp
from polydev.hostagent.vmm.vmm_session import VmmSession
from polydev.shared.errors import VmmFailed


class QemuSession(VmmSession):
    """Created by `start` or `resume`."""

    vmm = "QEMU"
    hint = f"Check that `{PROGRAM} --version` works on this host"

    def __init__(self, folder: Path, running: process.VmmProcess, marker: Marker) -> None:
        super().__init__(folder, running, marker)
        self.migration_changed = asyncio.Event()
        """Set whenever QEMU reports progress of a migration."""
        self.on_exit: Callable[[], object] = bool
        """Further clean-up after the process has ended. Blocking."""
        self._fifo = -1
        self._qmp: Qmp | None = None
        self._console_socket: socket.socket | None = None

    @classmethod
    async def start(
        cls,
        folder: Path,
        argv: Sequence[str],
        descriptors: Sequence[int],
        endpoints: ipc.QemuEndpoints,
        marker: Marker,
    ) -> QemuSession:
        """Start QEMU, paused; return once it answers. Raises: VmmFailed, OSError."""
        passed = [*descriptors, endpoints.qmp.fileno(), endpoints.console.fileno()]
        starting = partial(process.start, argv, passed, endpoints.errors, folder)
        running = await shielded_or_undo(asyncio.to_thread(starting), _kill)
        # Close our copies before connecting: a connection to an ended QEMU is refused, not queued.
        endpoints.qmp.close()
        endpoints.console.close()
        session = cls(folder, running, marker)
        await session._attach(write_identity=True)
        return session

    @classmethod
    async def resume(cls, folder: Path, running: process.VmmProcess) -> QemuSession:
        """Attach to a QEMU of an earlier agent; kill it on VmmFailed."""
        session = cls(folder, running, Marker("-"))
        session.marker.seen.set()
        await session._attach(write_identity=False)
        return session

    @property
    def qmp(self) -> Qmp:
        """The control connection. Raises: VmmFailed when the session is over."""
        if self._qmp is None:
            raise VmmFailed("The VMM has ended")
        return self._qmp

    def _start_readers(self) -> None:
        self._fifo = ipc.open_errors(self.folder)
        self._tasks.append(asyncio.create_task(self._errors.read_pipe(self._fifo)))

    async def _connect(self) -> None:
        self._qmp = await Qmp.connect(
            await ipc.connect(self.folder, ipc.QMP_SOCKET), self._on_event
        )
        self._console_socket = await ipc.connect(self.folder, ipc.CONSOLE_SOCKET)
        reading = self._console.read_console(self._console_socket)
        self._tasks.append(asyncio.create_task(reading))
        self._draining_tasks.add(self._tasks[-1])

    async def _close_connections(self) -> None:
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None
        if self._console_socket is not None:
            self._console_socket.close()
        if self._fifo >= 0:
            await self._errors.drain_pipe(self._fifo)
            os.close(self._fifo)
            self._fifo = -1

    async def _remove_files(self) -> None:
        await run_in_thread_shielded(ipc.remove_files, self.folder)
        await run_in_thread_shielded(self.on_exit)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        # QEMU sets `nospace` only for drives that stop the machine; `reason` is strerror(3)'s text.
        if name == "BLOCK_IO_ERROR" and data.get("reason") == os.strerror(errno.ENOSPC):
            self.host_disk_full.set()
        if name == "MIGRATION":
            self.migration_changed.set()


async def _kill(running: process.VmmProcess) -> None:
    await running.kill()
    running.release()
