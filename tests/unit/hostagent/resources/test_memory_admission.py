"""A host refuses machines that exceed its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from machine_parts import Faults, InMemoryNetwork

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.resources import memory_admission
from polydev.hostagent.resources.capacity import Capacity
from polydev.hostagent.resources.memory_admission import SPARE_MIB, MemoryAdmission
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.shared.domain import MachineKind, MachineState, new_vm_id
from polydev.shared.errors import NoCapacity
from polydev.shared.host_protocol import CreateMachine
from polydev.testing.simulated_vmm import SimulatedDriver, SimulatedProvisioner


@dataclass
class ShortHost:
    """A host of simulated machines with memory for two of 512 MiB."""

    root: Path
    available_mib: int = 8192
    machines: MachineService = field(init=False)

    def __post_init__(self) -> None:
        (self.root / "machines").mkdir()
        host = HostContext(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            log_archive=LogArchive(self.root / "logs"),
            driver=SimulatedDriver(),
            network=InMemoryNetwork(Faults()),
            provisioner=SimulatedProvisioner(HostSettings(state_dir=self.root, driver="simulated")),
            memory_keys=MemoryKeys.for_state(self.root, self.root / "keys"),
            admission=MemoryAdmission(1024 + 100, available_mib=lambda: self.available_mib),
        )
        self.machines = MachineService(host)

    async def create(self) -> str:
        vm_id = new_vm_id()
        shape = {"machine_kind": MachineKind.CLI, "memory_mib": 512, "vcpus": 1, "disk_mib": 256}
        await self.machines.create(CreateMachine.model_validate({"vm_id": vm_id, **shape}))
        return vm_id

    def state(self, vm_id: str) -> MachineState:
        return self.machines.view(vm_id).state


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[ShortHost]:
    host = ShortHost(tmp_path)
    await host.machines.recover()
    yield host
    for vm_id in host.machines.known():
        await host.machines.destroy(vm_id)


async def test_machine_beyond_the_limit_is_refused_and_leaves_nothing(host: ShortHost) -> None:
    created = {await host.create(), await host.create()}
    with pytest.raises(NoCapacity) as refused:
        await host.create()
    assert "needs 512 MiB: of the 1124 MiB for machines of this host, 1024 MiB" in str(
        refused.value
    )
    assert "POLYDEV_MEMORY_OVERCOMMIT" in refused.value.hint
    assert set(host.machines.known()) == created
    assert {path.name for path in (host.root / "machines").iterdir()} == created
    await host.machines.destroy(created.pop())
    await host.create()


async def test_concurrent_creations_count_before_they_run(host: ShortHost) -> None:
    ended = await asyncio.gather(*(host.create() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(it, str) for it in ended) == 2
    assert sum(isinstance(it, NoCapacity) for it in ended) == 3


async def test_stopped_and_hibernated_machines_free_memory_and_stay_if_refused(
    host: ShortHost,
) -> None:
    stopped, hibernated = await host.create(), await host.create()
    await host.machines.stop(stopped)
    await host.machines.hibernate(hibernated)
    others = [await host.create(), await host.create()]
    for vm_id, state in ((stopped, MachineState.STOPPED), (hibernated, MachineState.HIBERNATED)):
        with pytest.raises(NoCapacity):
            await host.machines.start(vm_id, 10)
        assert host.state(vm_id) is state
    for vm_id in others:
        await host.machines.destroy(vm_id)
    resumed = await host.machines.start(hibernated, 10)
    assert resumed.wake is not None
    assert resumed.wake.how == "resumed", "its saved memory survived the refusal"
    await host.machines.start(stopped, 10)


async def test_host_short_of_memory_admits_no_machine(host: ShortHost) -> None:
    vm_id = await host.create()
    await host.machines.stop(vm_id)
    host.available_mib = 512 + SPARE_MIB - 1
    with pytest.raises(NoCapacity, match="short of it, with 767 MiB left where 768 MiB"):
        await host.machines.start(vm_id, 10)
    assert host.state(vm_id) is MachineState.STOPPED
    host.available_mib += 1
    await host.machines.start(vm_id, 10)


def test_failed_start_releases_its_claim() -> None:
    room = MemoryAdmission(512)
    with pytest.raises(RuntimeError), room.admitted("a", 512, {}):
        raise RuntimeError
    with room.admitted("b", 512, {}), pytest.raises(NoCapacity), room.admitted("c", 1, {}):
        pass
    with room.admitted("a", 512, {"a": 512}):
        pass


def test_overcommitment_follows_the_settings() -> None:
    settings = HostSettings(host_memory_mib=1000, memory_overcommit=1.5)
    capacity = Capacity.measure(
        settings, driver="simulated", accelerator="none", driver_version="", host_memory=False
    )
    assert capacity.memory_mib == 1500, "the controller places by the same figure"
    room = capacity.admission(settings)
    with room.admitted("a", 1000, {"b": 500}), pytest.raises(NoCapacity):  # noqa: SIM117
        with room.admitted("c", 1, {"b": 500}):
            pass
    generous = MemoryAdmission(None, 2.0, lambda: 256 + SPARE_MIB)
    with generous.admitted("a", 512, {}):
        pass


def test_memory_is_read_from_the_kernel() -> None:
    assert 0 < memory_admission.available_mib() <= memory_admission.total_mib()
