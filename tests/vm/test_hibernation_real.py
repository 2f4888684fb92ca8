"""A real machine that sleeps and wakes under a real host agent: memory, clock, and every cut.

One machine goes through all of it: after each cut it must still know what it had in memory alone.
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
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import (
    DestroyMachine,
    ExecRequest,
    HibernateMachine,
    MachineView,
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

HIBERNATE_CUTS = {
    f"{WRITER}:SnapshotWriter.write:before:4": RUNNING,
    f"{WRITER}:_put_in_place:before:1": RUNNING,
    f"{WRITER}:_put_in_place:after:1": HIBERNATED,
    f"{QEMU}.kill:after:1": HIBERNATED,
}
"""Where the agent is killed, and what its machine is afterwards."""
RESUME_CUTS = {
    "polydev.hostagent.snapshots.reader:SnapshotFile.read:before:4": HIBERNATED,
    "polydev.hostagent.snapshots:discard:before:1": HIBERNATED,
    "polydev.hostagent.snapshots:discard:after:1": RUNNING,
    "polydev.hostagent.machines.hibernation:resume_guest:before:1": RUNNING,
}


@dataclass
class Sleeper:
    """The machine, and whoever is its agent at the moment."""

    agent: AgentProcess
    host: Host
    vm_id: str

    async def agent_with(self, where: str, action: str = "kill") -> None:
        """Another agent over the same machine, with something wrong in it."""
        await self.agent.kill()
        self.agent.env |= {"FAULT_AT": where, "FAULT": action}
        await self.agent.start()
        del self.agent.env["FAULT_AT"], self.agent.env["FAULT"]

    async def sound_agent(self) -> None:
        await self.agent.kill()
        await self.agent.start()

    async def run(self, operation: object) -> MachineView:
        view = await self.host.run(f"test-{uuid.uuid4()}", operation, LIMIT_S)  # type: ignore[arg-type]
        assert view is not None
        return view

    async def hibernate(self) -> MachineView:
        return await self.run(HibernateMachine(vm_id=self.vm_id))

    async def resume(self) -> MachineView:
        return await self.run(ResumeMachine(vm_id=self.vm_id, ready_timeout_s=LIMIT_S))

    async def said(self, *argv: str) -> str:
        output = await self.host.run_program(self.vm_id, argv, timeout_s=60)
        assert output.exit_code == 0, output.stderr
        return output.stdout.decode().strip()

    async def assert_remembers(self) -> None:
        """And knows what time it is, and holds no connection but ours."""
        assert await self.said("cat", THOUGHT) == "only in memory"
        before_s = time.time()
        clock_s = float(await self.said("date", "+%s.%N"))
        assert before_s - 1 < clock_s < time.time() + 1
        sshd = await self.said("cat", "/run/sshd.pid")
        children = await self.said("sh", "-c", f"cat /proc/{sshd}/task/{sshd}/children")
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
async def sleeper(saved_machine: SavedMachine) -> AsyncIterator[Sleeper]:
    async with resumed_machine(saved_machine) as it:
        made = Sleeper(it.agent, it.host, it.vm_id)
        thought = WireFile.of(GuestFile(THOUGHT, b"only in memory"))
        await made.run(WriteFiles(vm_id=made.vm_id, files=[thought]))
        yield made


async def test_machine_hibernates_and_resumes_despite_interruptions(sleeper: Sleeper) -> None:
    await it_sleeps_and_wakes(sleeper)
    await an_agent_killed_on_the_way_to_sleep(sleeper)
    await a_disk_that_fills_up(sleeper)
    await an_agent_killed_on_the_way_back(sleeper)
    await a_vmm_killed_on_the_way_back(sleeper)
    await memory_that_is_damaged(sleeper)
    await sleeper.host.run("last", DestroyMachine(vm_id=sleeper.vm_id), LIMIT_S)
    seen = await sleeper.host.inventory()
    assert seen.machines == seen.folders == seen.taps == seen.firewall == []
    assert sleeper.agent.vmm_pids() == []


async def it_sleeps_and_wakes(sleeper: Sleeper) -> None:
    before = await sleeper.host.machine(sleeper.vm_id)
    async with sleeper.host.exec(sleeper.vm_id, ExecRequest(argv=["sleep", "1000"])):
        asleep = await sleeper.hibernate()
    await sleeper.assert_is(HIBERNATED)
    assert (asleep.pid, asleep.ip_address) == (None, before.ip_address)
    fell_asleep_s = time.monotonic()
    with pytest.raises(MachineBusy):
        await sleeper.said("true")
    with pytest.raises(MachineBusy):
        await sleeper.host.read_file(sleeper.vm_id, "/etc/hostname")
    await sleeper.sound_agent()
    await sleeper.assert_is(HIBERNATED)
    await asyncio.sleep(max(0, fell_asleep_s + 4 - time.monotonic()))  # its clock falls behind

    awake = await sleeper.resume()
    await sleeper.assert_is(RUNNING)
    assert awake.wake is not None
    assert (awake.wake.how, awake.wake.reason) == ("resumed", "")
    assert (awake.ip_address, awake.mac) == (before.ip_address, before.mac)
    await sleeper.assert_remembers()
    assert await sleeper.said("sh", "-c", "pidof sleep || true") == ""


async def an_agent_killed_on_the_way_to_sleep(sleeper: Sleeper) -> None:
    for where, state in HIBERNATE_CUTS.items():
        await sleeper.agent_with(where)
        with pytest.raises(HostUnreachable):
            await sleeper.hibernate()
        await sleeper.sound_agent()
        await sleeper.assert_is(state)
        if state is HIBERNATED:
            await sleeper.resume()
        await sleeper.assert_remembers()


async def a_disk_that_fills_up(sleeper: Sleeper) -> None:
    await sleeper.agent_with(f"{WRITER}:SnapshotWriter._write:before:3", "full")
    with pytest.raises(DiskFull) as raised:
        await sleeper.hibernate()
    assert "No room" in raised.value.message
    await sleeper.assert_is(RUNNING)
    await sleeper.assert_remembers()


async def an_agent_killed_on_the_way_back(sleeper: Sleeper) -> None:
    for where, state in RESUME_CUTS.items():
        await sleeper.hibernate()
        await sleeper.agent_with(where)
        with pytest.raises(HostUnreachable):
            await sleeper.resume()
        await sleeper.sound_agent()
        await sleeper.assert_is(state)
        if state is HIBERNATED:
            await sleeper.resume()
        await sleeper.assert_remembers()


async def a_vmm_killed_on_the_way_back(sleeper: Sleeper) -> None:
    await sleeper.hibernate()
    where = "polydev.hostagent.snapshots.reader:SnapshotFile.read:before:4"
    await sleeper.agent_with(where, "vmm")
    awake = await sleeper.resume()
    assert awake.wake is not None
    assert awake.wake.how == "resumed", "its memory was still whole"
    await sleeper.assert_is(RUNNING)
    await sleeper.assert_remembers()


async def memory_that_is_damaged(sleeper: Sleeper) -> None:
    file = WireFile.of(GuestFile("/root/note", b"on the disk"))
    await sleeper.run(WriteFiles(vm_id=sleeper.vm_id, files=[file]))
    await sleeper.hibernate()
    saved = sleeper.agent.state_dir / "machines" / sleeper.vm_id / "memory.saved"
    with saved.open("r+b") as memory:
        memory.truncate(saved.stat().st_size // 2)
    awake = await sleeper.resume()
    assert awake.wake is not None
    assert awake.wake.how == "booted"
    assert "damaged" in awake.wake.reason
    await sleeper.assert_is(RUNNING)
    assert await sleeper.said("cat", "/root/note") == "on the disk"
    assert await sleeper.said("sh", "-c", f"cat {THOUGHT} || true") == ""
