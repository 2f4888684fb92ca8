"""Real machines in this process, on a VM network of their own: for tests of channel and network.

Everything between a golden image and a running guest is the product's; nothing of it is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from saved_machine import SavedMachine

from polydev.hostagent import snapshots
from polydev.hostagent.channel import Channel
from polydev.hostagent.health.log_archive import KeptLogs
from polydev.hostagent.machines.context import Site
from polydev.hostagent.machines.guest_resume import awaken
from polydev.hostagent.machines.lifecycle import RunningMachine, prepare, prepare_again
from polydev.hostagent.machines.record import MachineRecord, Place
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.sandbox import UID_BASE
from polydev.hostagent.vmm.driver_selection import choose
from polydev.shared.domain import MachineKind, MachineState, VmId, new_vm_id

IMAGES = Path(os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images"))
BOOT_LIMIT_S = 240


@dataclass(frozen=True)
class RealMachine:
    """A machine that runs, and where it is."""

    vm_id: VmId
    place: Place
    running: RunningMachine

    @property
    def channel(self) -> Channel:
        return cast(Channel, self.running.channel)


@dataclass
class Fleet:
    """The machines of one test."""

    site: Site
    network: Network
    machines: list[RealMachine] = field(default_factory=list)

    async def start(self) -> RealMachine:
        """A CLI machine whose channel answers."""
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
        prepared = await prepare(self.site, record, fresh=True)
        running = await prepared.launch(self.site)
        place = prepared.record.place
        assert place is not None
        machine = RealMachine(VmId(record.vm_id), place, running)
        self.machines.append(machine)
        await running.until_ready(BOOT_LIMIT_S)
        return machine

    async def resume(self, vm_id: VmId) -> RealMachine:
        """The saved machine that this fleet began with, once its channel answers."""
        folder = self.site.folder(vm_id)
        record = folder.read()
        assert record is not None
        assert record.place is not None
        async with snapshots.reading(folder.memory, self.site.memory_keys.known()) as source:
            prepared = await prepare_again(self.site, record)
            running = await prepared.restore(self.site, source)
        machine = RealMachine(vm_id, record.place, running)
        self.machines.append(machine)
        await running.vmm.resume()
        await running.until_ready(BOOT_LIMIT_S)
        await awaken(running)
        return machine


@asynccontextmanager
async def fleet(saved: SavedMachine | None = None, **settings: object) -> AsyncIterator[Fleet]:
    """A place for real machines, with a copy of the saved one.

    `settings` are HostSettings': the namespaces at least.
    """
    state_dir = Path(tempfile.mkdtemp(prefix="pdt-"))
    if saved is not None:
        saved.put_into(state_dir, state_dir)
    state_dir.chmod(0o755)
    host = HostSettings(state_dir=state_dir, images_dir=IMAGES, **settings)  # type: ignore[arg-type]
    network = Network.from_settings(host)
    try:
        choice = await choose(host)
        await network.ensure()
        for folder in (state_dir / "machines", host.sockets_dir):
            folder.mkdir(parents=True, exist_ok=True)
        site = Site(
            machines_dir=state_dir / "machines",
            sockets_dir=host.sockets_dir,
            kept_logs=KeptLogs(host.logs_dir / "machines"),
            driver=choice.driver,
            network=network,
            furnishing=choice.furnishing,
            memory_keys=MemoryKeys.for_state(state_dir, state_dir),
        )
        made = Fleet(site, network)
        try:
            yield made
        finally:
            for machine in made.machines:
                await machine.running.kill()
    finally:
        await network.remove()
        shutil.rmtree(state_dir)
