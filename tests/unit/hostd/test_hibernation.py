"""Sleep and wake on simulated machines: what is remembered, what is said, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine_parts import BookNetwork, Faults

from polydev.domain import GuestFile, MachineKind, MachineState, new_vm_id
from polydev.hostapi import (
    CreateMachine,
    HibernateMachine,
    ResumeMachine,
    WireFile,
    WriteFiles,
)
from polydev.hostd.furnishing import SimulatedFurnishing
from polydev.hostd.kept_logs import KeptLogs
from polydev.hostd.machines import Machines
from polydev.hostd.perform import perform
from polydev.hostd.site import Site
from polydev.hostd.snapshots import MemoryKeys
from polydev.hostd.vmm.simulated import SimulatedDriver
from polydev.settings import HostSettings

IN_MEMORY, ON_DISK = "/run/thought", "/root/note"


@dataclass
class SimulatedHost:
    """One host; `agent` is another host agent over the same folders."""

    root: Path

    def __post_init__(self) -> None:
        self.network = BookNetwork(Faults())
        self.keys = self.root / "keys"
        self.settings = HostSettings(state_dir=self.root, driver="simulated")
        (self.root / "machines").mkdir()

    def site(self) -> Site:
        return Site(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            kept_logs=KeptLogs(self.root / "logs"),
            driver=SimulatedDriver(),
            network=self.network,
            furnishing=SimulatedFurnishing(self.settings),
            memory_keys=MemoryKeys.for_state(self.root, self.keys),
        )

    async def agent(self) -> Machines:
        machines = Machines(self.site())
        await machines.recover()
        return machines


@pytest.fixture
async def host(tmp_path: Path) -> SimulatedHost:
    return SimulatedHost(tmp_path)


@pytest.fixture
async def machines(host: SimulatedHost) -> AsyncIterator[Machines]:
    machines = await host.agent()
    yield machines
    await machines.close()


async def made(machines: Machines) -> str:
    """A machine that has something in memory and something on its disk."""
    vm_id = new_vm_id()
    shape = {"machine_kind": MachineKind.CLI, "memory_mib": 512, "vcpus": 1, "disk_mib": 64}
    await machines.create(CreateMachine.model_validate({"vm_id": vm_id, **shape}))
    await wrote(machines, vm_id, IN_MEMORY, ON_DISK)
    return vm_id


async def wrote(machines: Machines, vm_id: str, *paths: str) -> None:
    files = [WireFile.of(GuestFile(path, b"here")) for path in paths]
    await machines.write_files(WriteFiles(vm_id=vm_id, files=files))


async def has(machines: Machines, vm_id: str, path: str) -> bool:
    names = await machines.guest_files(vm_id).listing(path.rpartition("/")[0].encode())
    return path.rpartition("/")[2] in {name.name for name in names.entries}


def saved(machines: Machines, vm_id: str) -> Path:
    return machines._site.folder(vm_id).memory


async def test_what_it_had_in_memory_it_still_knows(machines: Machines) -> None:
    vm_id = await made(machines)
    before = machines.view(vm_id)
    asleep = await perform(machines, HibernateMachine(vm_id=vm_id))
    assert asleep is not None
    assert (asleep.state, asleep.pid, asleep.ip_address, asleep.mac) == (
        MachineState.HIBERNATED,
        None,
        before.ip_address,
        before.mac,
    )
    assert asleep.memory_on_disk_bytes == saved(machines, vm_id).stat().st_size > 0
    assert machines.vmm_pids() == {}
    assert await machines.hibernate(vm_id) == asleep

    awake = await perform(machines, ResumeMachine(vm_id=vm_id))
    assert awake is not None
    assert awake.wake is not None
    assert (awake.state, awake.wake.how, awake.wake.reason) == (MachineState.RUNNING, "resumed", "")
    assert (awake.memory_on_disk_bytes, awake.ip_address) == (0, before.ip_address)
    assert not saved(machines, vm_id).exists()
    assert await machines.read_file(vm_id, IN_MEMORY, 10) == b"here"
    assert await machines.read_file(vm_id, "/run/awake_since", 100)
