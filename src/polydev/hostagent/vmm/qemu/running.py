"""A machine running under QEMU (`RunningVmm`)."""

from __future__ import annotations

import socket
from contextlib import suppress

from polydev.hostagent.system.namespaces import dial
from polydev.hostagent.vmm.contract import SnapshotSink
from polydev.hostagent.vmm.process_vmm import ProcessVmm
from polydev.hostagent.vmm.qemu import migration
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.shared.errors import VmmFailed


class RunningQemu(ProcessVmm[QemuSession]):
    """Created by `QemuDriver`."""

    async def open_channel(self) -> socket.socket:
        """Connect to the channel's port in the VM namespace. Raises: ChannelLost."""
        return await dial(self._spec.netns, "127.0.0.1", self._spec.channel_port)

    async def request_shutdown(self) -> None:
        """Press the guest's power button. Does nothing if the VMM has ended."""
        with suppress(VmmFailed):
            await self._session.qmp.execute("system_powerdown")

    async def save(self, sink: SnapshotSink) -> None:
        """Pause the guest and write it out. Raises: VmmFailed, and what the sink raises."""
        await migration.save(self._session, sink, self._spec.memory_mib)

    async def pause(self) -> None:
        """Pause the guest. Raises: VmmFailed."""
        await self._session.qmp.execute("stop")

    async def resume(self) -> None:
        """Resume a paused guest. Raises: VmmFailed."""
        await migration.cancel(self._session)
        await self._session.qmp.execute("cont")
