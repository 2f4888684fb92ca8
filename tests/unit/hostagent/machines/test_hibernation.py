"""Hibernation and resume of simulated machines."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from machine_parts import Faults, InMemoryNetwork

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.operations.dispatch import perform
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.error_mapping import as_polydev_error
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.vmm.contract import LaunchSpec, SnapshotSource
from polydev.shared.domain import GuestFile, MachineKind, MachineState, new_vm_id
from polydev.shared.errors import Failed, MachineBusy, NetworkFailed, NoSuchFile
from polydev.shared.host_protocol import (
    CreateMachine,
    ExecRequest,
    HibernateMachine,
    HostMachineView,
    RemoveFiles,
    ResumeMachine,
    WireFile,
    WriteFiles,
)
from polydev.testing.simulated_vmm import SimulatedDriver, SimulatedProvisioner, SimulatedVmm

IN_MEMORY, ON_DISK = "/run/thought", "/root/note"


@dataclass
class SimulatedHost:
    """One host; each `agent` is another host agent over the same folders."""

    root: Path

    def __post_init__(self) -> None:
        self.faults = Faults()
        self.fingerprint: str | None = None
        self.goes_on = True
        self.wake_limit_s = 60.0
        self.network = InMemoryNetwork(self.faults)
        self.keys = self.root / "keys"
        self.settings = HostSettings(state_dir=self.root, driver="simulated")
        (self.root / "machines").mkdir()

    def host(self) -> HostContext:
        return HostContext(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            log_archive=LogArchive(self.root / "logs"),
            driver=Driver(self),
            network=self.network,
            provisioner=SimulatedProvisioner(self.settings),
            memory_keys=MemoryKeys.for_state(self.root, self.keys),
            wake_limit_s=self.wake_limit_s,
        )

    async def agent(self) -> MachineService:
        machines = MachineService(self.host())
        await machines.recover()
        return machines


class Driver(SimulatedDriver):
    """The simulated driver, with failures on demand."""

    def __init__(self, host: SimulatedHost) -> None:
        super().__init__()
        self._host = host

    async def fingerprint(self, spec: LaunchSpec) -> str:
        return self._host.fingerprint or await super().fingerprint(spec)

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> SimulatedVmm:
        vmm = await super().restore(spec, source)
        if not self._host.goes_on:
            vmm._runs = asyncio.Event()
            vmm.resume = nothing  # type: ignore[method-assign]
        return vmm


async def nothing() -> None:
    return


@pytest.fixture
async def host(tmp_path: Path) -> SimulatedHost:
    return SimulatedHost(tmp_path)


@pytest.fixture
async def machines(host: SimulatedHost) -> AsyncIterator[MachineService]:
    machines = await host.agent()
    yield machines
    await machines.close()


async def create_machine(machines: MachineService) -> str:
    """Create a machine with data in memory and on its disk."""
    vm_id = new_vm_id()
    await machines.create(create_request(vm_id))
    await write_files(machines, vm_id, IN_MEMORY, ON_DISK)
    return vm_id


def create_request(vm_id: str) -> CreateMachine:
    return CreateMachine(
        vm_id=vm_id, machine_kind=MachineKind.CLI, memory_mib=512, vcpus=1, disk_mib=64
    )


async def write_files(machines: MachineService, vm_id: str, *paths: str) -> None:
    files = [WireFile.of(GuestFile(path, b"here")) for path in paths]
    await machines.write_files(WriteFiles(vm_id=vm_id, files=files))


def memory_path(machines: MachineService, vm_id: str) -> Path:
    return machines._host.folder(vm_id).memory


async def test_resumed_machine_keeps_its_memory(machines: MachineService) -> None:
    vm_id = await create_machine(machines)
    before = machines.view(vm_id)
    hibernated = await perform(machines, HibernateMachine(vm_id=vm_id))
    assert hibernated is not None
    assert (hibernated.state, hibernated.pid, hibernated.ip_address, hibernated.mac) == (
        MachineState.HIBERNATED,
        None,
        before.ip_address,
        before.mac,
    )
    assert hibernated.memory_on_disk_bytes == memory_path(machines, vm_id).stat().st_size > 0
    assert machines.vmm_pids() == {}
    assert await machines.hibernate(vm_id) == hibernated

    resumed = await perform(machines, ResumeMachine(vm_id=vm_id))
    assert resumed is not None
    assert resumed.wake is not None
    assert (resumed.state, resumed.wake.how, resumed.wake.reason) == (
        MachineState.RUNNING,
        "resumed",
        "",
    )
    assert (resumed.memory_on_disk_bytes, resumed.ip_address) == (0, before.ip_address)
    assert not memory_path(machines, vm_id).exists()
    assert await machines.read_file(vm_id, IN_MEMORY, 10) == b"here"
    assert await machines.read_file(vm_id, "/run/awake_since", 100)


async def test_restarted_agent_resumes_a_machine(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    hibernated = await machines.hibernate(vm_id)
    await machines.close()
    again = await host.agent()
    assert again.view(vm_id) == hibernated
    resumed = await again.start(vm_id, 10)
    assert resumed.wake is not None
    assert resumed.wake.how == "resumed"
    assert await again.read_file(vm_id, IN_MEMORY, 10) == b"here"
    await again.close()


async def test_create_and_start_resume_a_hibernated_machine(machines: MachineService) -> None:
    for wake in (create_again, start):
        vm_id = await create_machine(machines)
        await machines.hibernate(vm_id)
        view = await wake(machines, vm_id)
        assert view.wake is not None
        assert view.wake.how == "resumed"


async def create_again(machines: MachineService, vm_id: str) -> HostMachineView:
    return await machines.create(create_request(vm_id))


async def start(machines: MachineService, vm_id: str) -> HostMachineView:
    return await machines.start(vm_id, 10)


async def test_stopped_machine_boots_without_a_reason(machines: MachineService) -> None:
    vm_id = await create_machine(machines)
    assert machines.view(vm_id).wake is None
    await machines.stop(vm_id)
    with pytest.raises(MachineBusy, match="is stopped"):
        await machines.hibernate(vm_id)
    resumed = await perform(machines, ResumeMachine(vm_id=vm_id))
    assert resumed is not None
    assert resumed.wake is not None
    assert (resumed.wake.how, resumed.wake.reason) == ("booted", "")
    with pytest.raises(NoSuchFile):
        await machines.read_file(vm_id, IN_MEMORY, 10)


async def test_stop_discards_hibernated_memory(machines: MachineService) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    stopped = await machines.stop(vm_id)
    assert (stopped.state, stopped.memory_on_disk_bytes) == (MachineState.STOPPED, 0)
    assert not memory_path(machines, vm_id).exists()
    assert await machines.read_file(vm_id, ON_DISK, 10) == b"here"
    resumed = await machines.start(vm_id, 10)
    assert resumed.wake is not None
    assert (resumed.wake.how, resumed.wake.reason) == ("booted", "")


async def test_destroyed_hibernated_machine_leaves_nothing(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    await machines.destroy(vm_id)
    assert list((host.root / "machines").iterdir()) == []
    assert host.network.attachments == {}


async def test_disk_of_a_hibernated_machine_is_not_changed(machines: MachineService) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    for doing in (
        write_files(machines, vm_id, ON_DISK),
        machines.remove_files(RemoveFiles(vm_id=vm_id, paths=[ON_DISK])),
        machines.read_file(vm_id, ON_DISK, 10),
        machines.exec(vm_id, ExecRequest(argv=["true"])),
        machines.open_tcp(vm_id, 8080),
    ):
        with pytest.raises(MachineBusy, match="hibernated") as raised:
            await doing
        assert raised.value.hint == "Resume it first"


async def test_hibernated_machine_keeps_its_address_and_is_not_swept(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    swept = await machines.sweep()
    assert swept.folders == swept.addresses == swept.processes == []
    seen = await machines.inventory()
    assert (seen.machines, seen.folders, seen.processes) == ([vm_id], [vm_id], {})
    assert seen.addresses == {vm_id: machines.view(vm_id).ip_address}
    other = await create_machine(machines)
    assert machines.view(other).ip_address != machines.view(vm_id).ip_address


# Unusable memory ----------------------------------------------------------------------------------


def delete_memory_key(host: SimulatedHost, path: Path) -> None:
    shutil.rmtree(host.keys)


def truncate(host: SimulatedHost, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(host: SimulatedHost, path: Path) -> None:
    path.write_bytes(b"of another kind")


def upgrade(host: SimulatedHost, path: Path) -> None:
    host.fingerprint = "simulation: 2\n"


def change_address(host: SimulatedHost, path: Path) -> None:
    vm_id = path.parent.name
    attachment = host.network.attachments[vm_id]
    host.network.attachments[vm_id] = replace(attachment, address="192.168.100.99")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (delete_memory_key, "restarted"),
        (truncate, "damaged"),
        (overwrite, "damaged"),
        (upgrade, "saved: simulation"),
        (change_address, "network has changed"),
    ],
)
async def test_unusable_memory_is_discarded_and_the_boot_gives_the_reason(
    host: SimulatedHost,
    machines: MachineService,
    damage: Callable[[SimulatedHost, Path], None],
    reason: str,
) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    damage(host, memory_path(machines, vm_id))
    view = await machines.start(vm_id, 10)
    assert view.wake is not None
    assert (view.state, view.wake.how) == (MachineState.RUNNING, "booted")
    assert reason in view.wake.reason
    assert not memory_path(machines, vm_id).exists()
    assert await machines.read_file(vm_id, ON_DISK, 10) == b"here"
    with pytest.raises(NoSuchFile):
        await machines.read_file(vm_id, IN_MEMORY, 10)

    await machines.stop(vm_id)
    later = await machines.start(vm_id, 10)
    assert later.wake is not None
    assert later.wake.reason == "", "the reason is reported once"


async def test_unresponsive_resumed_guest_is_booted(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    host.goes_on, host.wake_limit_s = False, 0.5  # for the resume; there is time to boot
    another = await host.agent()
    view = await another.start(vm_id, 60)
    await another.close()
    assert view.wake is not None
    assert view.wake.how == "booted"
    assert "not ready within 0.5 s" in view.wake.reason


async def test_missing_memory_file_is_reported_at_boot(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    await machines.hibernate(vm_id)
    await machines.close()
    memory_path(machines, vm_id).unlink()
    again = await host.agent()
    assert again.view(vm_id).state is MachineState.STOPPED
    view = await again.start(vm_id, 10)
    assert view.wake is not None
    assert "gone" in view.wake.reason
    await again.close()


async def test_host_failure_leaves_a_machine_hibernated(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    hibernated = await machines.hibernate(vm_id)
    host.faults.fail_at, host.faults.error = "attach", NetworkFailed("no network")
    with pytest.raises(NetworkFailed):
        await machines.start(vm_id, 10)
    assert machines.view(vm_id) == hibernated
    host.faults.fail_at = None
    view = await machines.start(vm_id, 10)
    assert view.wake is not None
    assert view.wake.how == "resumed"


async def test_machine_runs_on_if_the_key_has_no_folder(
    host: SimulatedHost, machines: MachineService
) -> None:
    vm_id = await create_machine(machines)
    host.keys.write_text("no folder")
    with pytest.raises(Failed):
        await perform_as_asked(machines, HibernateMachine(vm_id=vm_id))
    assert machines.view(vm_id).state is MachineState.RUNNING
    assert await machines.read_file(vm_id, IN_MEMORY, 10) == b"here"


async def perform_as_asked(machines: MachineService, operation: HibernateMachine) -> None:
    """Raise errors as the wire reports them."""
    try:
        await perform(machines, operation)
    except Exception as error:
        raise as_polydev_error(error) from error
