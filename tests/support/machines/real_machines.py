"""Real machines in this process, for tests of channel and network.

They have their own VM network. The product's code does everything from the golden image to the
running guest. Nothing remains.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

from saved_machine import SavedMachine

from polydev.hostagent import snapshots
from polydev.hostagent.channel import Channel
from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.guest_resume import resume_guest
from polydev.hostagent.machines.machine import RunningMachine, prepare, prepare_restore
from polydev.hostagent.machines.provisioner import probe_files, provisioner_for
from polydev.hostagent.machines.record import MachineRecord, NetworkAttachment
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.system.sandbox import UID_BASE
from polydev.hostagent.vmm.driver_selection import select
from polydev.shared.domain import MachineKind, MachineState, VmId, new_vm_id

IMAGES = Path(os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images"))
BOOT_LIMIT_S = 240


@dataclass(frozen=True)
class RealMachine:
    """A running machine with its network attachment."""

    vm_id: VmId
    attachment: NetworkAttachment
    running: RunningMachine

    @property
    def channel(self) -> Channel:
        return cast(Channel, self.running.channel)


@dataclass
class Fleet:
    """The machines of one test."""

    host: HostContext
    network: Network
    machines: list[RealMachine] = field(default_factory=list)

    async def start(self) -> RealMachine:
        """Start a CLI machine and wait until its channel answers."""
        record = MachineRecord(
            vm_id=new_vm_id(),
            machine_kind=MachineKind.CLI,
            memory_mib=512,
            vcpus=1,
            disk_mib=512,
            labels={},
            state=MachineState.CREATING,
            created_at=datetime.now(UTC),
            uid=UID_BASE + 1 + len(self.machines),
        )
        prepared = await prepare(self.host, record, fresh=True)
        running = await prepared.launch(self.host)
        attachment = prepared.record.place
        assert attachment is not None
        machine = RealMachine(VmId(record.vm_id), attachment, running)
        self.machines.append(machine)
        await running.wait_until_ready(BOOT_LIMIT_S)
        return machine

    async def resume(self, vm_id: VmId) -> RealMachine:
        """Resume the saved machine and wait until its channel answers."""
        folder = self.host.folder(vm_id)
        record = folder.read()
        assert record is not None
        assert record.place is not None
        async with snapshots.open_snapshot(folder.memory, self.host.memory_keys.load()) as source:
            prepared = await prepare_restore(self.host, record)
            running = await prepared.restore(self.host, source)
        machine = RealMachine(vm_id, record.place, running)
        self.machines.append(machine)
        await running.vmm.resume()
        await running.wait_until_ready(BOOT_LIMIT_S)
        await resume_guest(running)
        return machine


@asynccontextmanager
async def fleet(saved: SavedMachine | None = None, **settings: object) -> AsyncIterator[Fleet]:
    """A host for real machines, with a copy of the saved one.

    `settings` are HostSettings, at least the namespaces.
    """
    state_dir = Path(tempfile.mkdtemp(prefix="pdt-"))
    if saved is not None:
        saved.put_into(state_dir, state_dir)
    state_dir.chmod(0o755)
    host_settings = HostSettings(state_dir=state_dir, images_dir=IMAGES, **settings)  # type: ignore[arg-type]
    network = Network.from_settings(host_settings)
    try:
        images = ImageStore(IMAGES)
        selected = await select(host_settings, partial(probe_files, images))
        await network.ensure()
        for folder in (state_dir / "machines", host_settings.sockets_dir):
            folder.mkdir(parents=True, exist_ok=True)
        host = HostContext(
            machines_dir=state_dir / "machines",
            sockets_dir=host_settings.sockets_dir,
            log_archive=LogArchive(host_settings.logs_dir / "machines"),
            driver=selected.driver,
            network=network,
            provisioner=provisioner_for(selected.driver, host_settings, images),
            memory_keys=MemoryKeys.for_state(state_dir, state_dir),
        )
        started = Fleet(host, network)
        try:
            yield started
        finally:
            for machine in started.machines:
                await machine.running.kill()
    finally:
        await network.remove()
        shutil.rmtree(state_dir)
