"""A machine that runs under QEMU, as `machines.py` sees it (`vmm.RunningVmm`)."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from polydev.errors import DiskFull, VmmFailed
from polydev.hostd.network.netns import dial
from polydev.hostd.vmm.qemu import migration
from polydev.hostd.vmm.qemu.session import Session
from polydev.hostd.vmm.vmm import ExitReport, LaunchSpec, SnapshotSink


class RunningQemu:
    """Made by `QemuDriver`."""

    def __init__(self, spec: LaunchSpec, session: Session) -> None:
        self._spec = spec
        self._session = session

    @property
    def pid(self) -> int:
        return self._session.process.pid

    async def wait_ready(self) -> None:
        """Return when the guest printed its ready marker; at once if it was adopted.

        Raises: VmmFailed if the VMM ends before; DiskFull if the guest could not write because the
        host has no room.
        """
        session = self._session
        news = [
            asyncio.create_task(session.marker.seen.wait()),
            asyncio.create_task(session.host_full.wait()),
            asyncio.create_task(session.ended()),
        ]
        try:
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in news:
                task.cancel()
        if session.marker.seen.is_set():
            return
        if session.host_full.is_set():
            raise DiskFull(
                f"The host's disk that holds {self._spec.disk} is full",
                hint="Free some space there, then start the machine again",
            )
        report = await session.ended()
        words = " | ".join(filter(None, (report.words, session.last_lines)))
        raise VmmFailed(
            f"{self._spec.vm_id} ended before it was ready: {words or 'it said nothing'}",
            hint=f"Its console is in {self._spec.folder / 'console.log'}",
        )

    async def open_channel(self) -> socket.socket:
        """A fresh connection to the channel's port in the VM namespace. Raises: ChannelLost."""
        return await dial(self._spec.netns, "127.0.0.1", self._spec.channel_port)

    async def request_shutdown(self) -> None:
        """Press the guest's power button. Nothing happens if the VMM has ended."""
        with suppress(VmmFailed):
            await self._session.qmp.execute("system_powerdown")

    async def save(self, sink: SnapshotSink) -> None:
        """Stop the guest and write it out. Raises: VmmFailed, and what the sink raises."""
        await migration.save(self._session, sink, self._spec.memory_mib)

    async def go_on(self) -> None:
        """Let a guest that stands still go on. Raises: VmmFailed."""
        await migration.settle(self._session)
        await self._session.qmp.execute("cont")

    async def kill(self) -> None:
        """End the process now; returns when it has ended and its sockets are gone."""
        await self._session.kill()

    async def wait(self) -> ExitReport:
        """Return when the process has ended, whoever ended it."""
        return await self._session.ended()

    async def close(self) -> None:
        """Let go of it; the machine goes on."""
        await self._session.close()
