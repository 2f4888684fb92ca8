"""Test hibernation of a real machine: memory, clock and interruptions.

One machine goes through every case and must retain its memory after each interruption.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from agent_process import AgentProcess
from saved_machine import SavedMachine, resumed_machine

from polydev.shared.domain import GuestFile, MachineState
from polydev.shared.errors import DiskFull, HostUnreachable, MachineBusy
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    DestroyMachine,
    ExecRequest,
    HibernateMachine,
    HostMachineView,
    ResumeMachine,
    WireFile,
    WriteFiles,
)

pytestmark = pytest.mark.vm

LIMIT_S = 240
THOUGHT = "/run/thought"
WRITER = "polydev.hostagent.snapshots.writer"
QEMU = "polydev.hostagent.vmm.qemu.running:RunningQemu"
RUNNING, HIBERNATED = MachineState.RUNNING, MachineState.HIBERNATED

HIBERNATE_FAULTS = {
    f"{WRITER}:SnapshotWriter.write:before:4": RUNNING,
    f"{WRITER}:_put_in_place:before:1": RUNNING,
    f"{WRITER}:_put_in_place:after:1": HIBERNATED,
    f"{QEMU}.kill:after:1": HIBERNATED,
}
"""Points where the agent is killed, with the machine's state afterwards."""
RESUME_FAULTS = {
    "polydev.hostagent.snapshots.reader:SnapshotFile.read:before:4": HIBERNATED,
    "polydev.hostagent.snapshots:discard:before:1": HIBERNATED,
    "polydev.hostagent.snapshots:discard:after:1": RUNNING,
    "polydev.hostagent.machines.hibernation:resume_guest:before:1": RUNNING,
}


@dataclass
class MachineUnderTest:
    """Machine under test with its current agent."""

    agent: AgentProcess
    host: HostClient
    vm_id: str

    async def restart_agent_with_fault(self, where: str, action: str = "kill") -> None:
        """Restart the agent with a fault injected at `where`."""
        await self.agent.kill()
        self.agent.env |= {"FAULT_AT": where, "FAULT": action}
        await self.agent.start()
        del self.agent.env["FAULT_AT"], self.agent.env["FAULT"]

    async def restart_agent(self) -> None:
        await self.agent.kill()
        await self.agent.start()

    async def run(self, operation: object) -> HostMachineView:
        view = await self.host.run(f"test-{uuid.uuid4()}", operation, LIMIT_S)  # type: ignore[arg-type]
        assert view is not None
        return view

    async def hibernate(self) -> HostMachineView:
        return await self.run(HibernateMachine(vm_id=self.vm_id))

    async def resume(self) -> HostMachineView:
        return await self.run(ResumeMachine(vm_id=self.vm_id, ready_timeout_s=LIMIT_S))

    async def output_of(self, *argv: str) -> str:
        output = await self.host.run_program(self.vm_id, argv, timeout_s=60)
        assert output.exit_code == 0, output.stderr
        return output.stdout.decode().strip()

    async def wait_for_program(self, name: str) -> None:
        """Wait until a program runs: it has asked then for a signal at its connection's end."""
        await self.output_of("sh", "-c", f"until pidof {name}; do usleep 50000; done")

    async def assert_memory_retained(self) -> None:
        """Check memory and clock, and that no other connection is open."""
        assert await self.output_of("cat", THOUGHT) == "only in memory"
        before_s = time.time()
        clock_s = float(await self.output_of("date", "+%s.%N"))
        assert before_s - 1 < clock_s < time.time() + 1
        sshd = await self.output_of("cat", "/run/sshd.pid")
        children = await self.output_of("sh", "-c", f"cat /proc/{sshd}/task/{sshd}/children")
        assert len(children.split()) == 1

    async def assert_is(self, state: MachineState) -> None:
        view = await self.host.machine(self.vm_id)
        folder = self.agent.state_dir / "machines" / self.vm_id
        saved = {path.name for path in folder.iterdir() if "memory" in path.name}
        assert view.state is state
        if state is RUNNING:
            assert self.agent.vmm_pids() == [view.pid]
            assert saved == set()
        else:
            assert self.agent.vmm_pids() == []
            assert saved == {"memory.saved"}
            assert view.memory_on_disk_bytes == (folder / "memory.saved").stat().st_size


@pytest.fixture
async def machine(saved_machine: SavedMachine) -> AsyncIterator[MachineUnderTest]:
    async with resumed_machine(saved_machine) as it:
        machine = MachineUnderTest(it.agent, it.host, it.vm_id)
        thought = WireFile.of(GuestFile(THOUGHT, b"only in memory"))
        await machine.run(WriteFiles(vm_id=machine.vm_id, files=[thought]))
        yield machine


async def test_machine_hibernates_and_resumes_despite_interruptions(
    machine: MachineUnderTest,
) -> None:
    await check_hibernate_and_resume(machine)
    await check_agent_killed_while_hibernating(machine)
    await check_full_disk(machine)
    await check_agent_killed_while_resuming(machine)
    await check_vmm_killed_while_resuming(machine)
    await check_damaged_memory(machine)
    await machine.host.run("last", DestroyMachine(vm_id=machine.vm_id), LIMIT_S)
    seen = await machine.host.inventory()
    assert seen.machines == seen.folders == seen.taps == seen.firewall == []
    assert machine.agent.vmm_pids() == []


async def check_hibernate_and_resume(machine: MachineUnderTest) -> None:
    before = await machine.host.machine(machine.vm_id)
    async with machine.host.exec(machine.vm_id, ExecRequest(argv=["sleep", "1000"])):
        await machine.wait_for_program("sleep")
        hibernated = await machine.hibernate()
    await machine.assert_is(HIBERNATED)
    assert (hibernated.pid, hibernated.ip_address) == (None, before.ip_address)
    hibernated_at_s = time.monotonic()
    with pytest.raises(MachineBusy):
        await machine.output_of("true")
    with pytest.raises(MachineBusy):
        await machine.host.read_file(machine.vm_id, "/etc/hostname")
    await machine.restart_agent()
    await machine.assert_is(HIBERNATED)
    await asyncio.sleep(
        max(0, hibernated_at_s + 4 - time.monotonic())
    )  # the guest clock falls behind

    resumed = await machine.resume()
    await machine.assert_is(RUNNING)
    assert resumed.wake is not None
    assert (resumed.wake.how, resumed.wake.reason) == ("resumed", "")
    assert (resumed.ip_address, resumed.mac) == (before.ip_address, before.mac)
    await machine.assert_memory_retained()
    assert await machine.output_of("sh", "-c", "pidof sleep || true") == ""


async def check_agent_killed_while_hibernating(machine: MachineUnderTest) -> None:
    for where, state in HIBERNATE_FAULTS.items():
        await machine.restart_agent_with_fault(where)
        with pytest.raises(HostUnreachable):
            await machine.hibernate()
        await machine.restart_agent()
        await machine.assert_is(state)
        if state is HIBERNATED:
            await machine.resume()
        await machine.assert_memory_retained()


async def check_full_disk(machine: MachineUnderTest) -> None:
    await machine.restart_agent_with_fault(f"{WRITER}:SnapshotWriter._write:before:3", "full")
    with pytest.raises(DiskFull) as raised:
        await machine.hibernate()
    assert "No space left" in raised.value.message
    await machine.assert_is(RUNNING)
    await machine.assert_memory_retained()


async def check_agent_killed_while_resuming(machine: MachineUnderTest) -> None:
    for where, state in RESUME_FAULTS.items():
        await machine.hibernate()
        await machine.restart_agent_with_fault(where)
        with pytest.raises(HostUnreachable):
            await machine.resume()
        await machine.restart_agent()
        await machine.assert_is(state)
        if state is HIBERNATED:
            await machine.resume()
        await machine.assert_memory_retained()


async def check_vmm_killed_while_resuming(machine: MachineUnderTest) -> None:
    await machine.hibernate()
    where = "polydev.hostagent.snapshots.reader:SnapshotFile.read:before:4"
    await machine.restart_agent_with_fault(where, "vmm")
    resumed = await machine.resume()
    assert resumed.wake is not None
    assert resumed.wake.how == "resumed", "the memory snapshot was intact"
    await machine.assert_is(RUNNING)
    await machine.assert_memory_retained()


async def check_damaged_memory(machine: MachineUnderTest) -> None:
    file = WireFile.of(GuestFile("/root/note", b"on the disk"))
    await machine.run(WriteFiles(vm_id=machine.vm_id, files=[file]))
    await machine.hibernate()
    saved = machine.agent.state_dir / "machines" / machine.vm_id / "memory.saved"
    with saved.open("r+b") as memory:
        memory.truncate(saved.stat().st_size // 2)
    resumed = await machine.resume()
    assert resumed.wake is not None
    assert resumed.wake.how == "booted"
    assert "damaged" in resumed.wake.reason
    await machine.assert_is(RUNNING)
    assert await machine.output_of("cat", "/root/note") == "on the disk"
    assert await machine.output_of("sh", "-c", f"cat {THOUGHT} || true") == ""
