"""A machine running under Firecracker (`RunningVmm`)."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack, suppress

from polydev.hostagent.vmm.contract import SnapshotSink
from polydev.hostagent.vmm.firecracker import limits, snapshot, vsock
from polydev.hostagent.vmm.firecracker.api import SnapshotPaths
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.firecracker.session import FirecrackerSession
from polydev.hostagent.vmm.process_vmm import ProcessVmm
from polydev.shared.errors import ChannelLost, VmmFailed

STATE, MEMORY = "snapshot.state", "snapshot.memory"
"""In the jail, which is a tmpfs: the guest's secrets reach no disk in the clear."""
SNAPSHOT = SnapshotPaths(f"/{STATE}", f"/{MEMORY}")
_SSH_PORT = 22
_MIB = 1024 * 1024


class RunningFirecracker(ProcessVmm[FirecrackerSession]):
    """Created by `FirecrackerDriver.launch`, `restore` and `adopt`."""

    async def open_channel(self) -> socket.socket:
        """Connect to the guest's vsock port 22. Raises: ChannelLost."""
        if self._session.root < 0:
            raise ChannelLost(f"{self._spec.vm_id} is not running")
        return await vsock.connect(self._session.root, self._spec.uid, _SSH_PORT)

    async def request_shutdown(self) -> None:
        """Press Ctrl+Alt+Del, the guest's shutdown signal.

        Does nothing if the VMM has ended.
        """
        with suppress(VmmFailed):
            await self._session.api.send_ctrl_alt_del()

    async def save(self, sink: SnapshotSink) -> None:
        """Pause the guest and write its memory and devices; it stays paused.

        Raises: VmmFailed, and what the sink raises.
        """
        await self.pause()
        # Files in the jail count as the VMM's memory until they are removed.
        guest_bytes = self._spec.memory_mib * _MIB
        limit_bytes = limits.memory_bytes(self._spec.memory_mib)
        await self._set_memory_limit(limit_bytes + guest_bytes)
        try:
            await self._session.api.create_snapshot(SNAPSHOT)
            with ExitStack() as stack:
                state, memory = (self._opened(stack, name) for name in (STATE, MEMORY))
                await snapshot.write(sink, state, memory, guest_bytes)
        finally:
            self._remove_snapshot_files()
            await self._set_memory_limit(limit_bytes)

    async def pause(self) -> None:
        """Pause the guest. Idempotent."""
        if await self._session.api.state() == "Running":
            await self._session.api.pause()

    async def resume(self) -> None:
        """Resume a paused guest. Idempotent."""
        if await self._session.api.state() == "Paused":
            await self._session.api.resume()

    async def _set_memory_limit(self, size_bytes: int) -> None:
        location = self._session.location
        await asyncio.to_thread(location.cgroups.allow_memory, location.name, size_bytes)

    def _opened(self, stack: ExitStack, name: str) -> int:
        try:
            descriptor = jail.open_file(self._session.root, name)
        except OSError as error:
            raise VmmFailed(f"Firecracker wrote no snapshot: {error.strerror}") from error
        stack.callback(os.close, descriptor)
        return descriptor

    def _remove_snapshot_files(self) -> None:
        if self._session.root >= 0:
            for name in (STATE, MEMORY):
                jail.remove_file(self._session.root, name)
