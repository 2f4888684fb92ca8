"""Hibernation and resume, interrupted at every point.

The agent is killed, the VMM is killed, a step fails, the caller is cancelled, or the machine is
destroyed. The VMM is a real process that outlives the agent.

A point comes before each externally visible effect: a file written or removed, a process started,
stopped, resumed or ended. After an agent is killed, its code has no effect any more.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from machine_parts import Faults, World

from polydev.hostagent import snapshots
from polydev.hostagent.machines.record import MachineFolder
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.snapshots import writer
from polydev.shared.domain import MachineKind, MachineState, new_vm_id
from polydev.shared.errors import PolydevError, VmmFailed
from polydev.shared.host_protocol import CreateMachine

MEMORY = random.Random(3).randbytes(1_200_000)


class Killed(BaseException):
    """The agent was killed."""


@dataclass
class Cut(Faults):
    """Counts the points, and interrupts at one of them."""

    at: int = -1
    do: Callable[[], None] = lambda: None
    stays: bool = False
    """True if nothing happens after it, as if the agent was killed."""
    count: int = 0
    is_counting: bool = False
    seen: list[str] = field(default_factory=list)

    def point(self, name: str) -> None:
        if not self.is_counting:
            return
        self.seen.append(name)
        self.count += 1
        if self.count - 1 == self.at or (self.stays and self.count - 1 > self.at):
            self.do()

    async def reach(self, step: str) -> None:
        self.point(step)
        await asyncio.sleep(0)


@dataclass
class Scene:
    world: World
    cut: Cut
    vm_id: str
    machines: MachineService

    @property
    def state(self) -> MachineState:
        return self.machines.view(self.vm_id).state

    async def perform(self, operation: str) -> None:
        if operation == "hibernate":
            await self.machines.hibernate(self.vm_id)
        else:
            await self.machines.start(self.vm_id, 10)

    async def restart_agent(self) -> None:
        """Start another agent over the same folders."""
        self.cut.is_counting = False
        await self.machines.close()
        self.machines = MachineService(self.world.host())
        await self.machines.recover()

    async def assert_whole(self) -> None:
        """Check that it runs or is hibernated, with all its memory."""
        folder = self.world.host().folder(self.vm_id)
        pids = self.world.driver.find_orphans([])
        assert not writer.temporary_path(folder.memory).exists()
        if self.state is MachineState.RUNNING:
            assert not folder.memory.exists(), "it runs although its memory file exists"
            assert [self.machines.view(self.vm_id).pid] == pids
            assert process_state(pids[0]) != "T", "it should run, but is paused"
            assert self.world.driver.memories[pids[0]] == MEMORY
        else:
            assert self.state is MachineState.HIBERNATED
            assert pids == []
            assert self.machines.view(self.vm_id).memory_on_disk_bytes > len(MEMORY)
        assert folder.read() == self.machines._registry.record(self.vm_id)

    async def assert_booted(self) -> None:
        """Check that it booted from its disk, without its memory."""
        pids = self.world.driver.find_orphans([])
        assert [self.machines.view(self.vm_id).pid] == pids
        assert self.world.driver.memories[pids[0]] == b""
        assert not self.world.host().folder(self.vm_id).memory.exists()
        await self.machines.destroy(self.vm_id)
        assert self.world.is_clean()

    async def assert_failed(self) -> None:
        """Check that it has stopped with a reason, and can be started."""
        assert self.machines.view(self.vm_id).error is not None
        assert self.world.driver.find_orphans([]) == []
        assert not self.world.host().folder(self.vm_id).memory.exists()
        await self.machines.start(self.vm_id, 10)
        await self.machines.destroy(self.vm_id)
        assert self.world.is_clean()

    async def assert_still_usable(self) -> None:
        """Check that both operations succeed again."""
        await self.perform("hibernate")
        await self.assert_whole()
        await self.perform("resume")
        assert self.state is MachineState.RUNNING
        await self.assert_whole()
        wake = self.machines.view(self.vm_id).wake
        assert wake is not None
        assert wake.how == "resumed"
        await self.machines.destroy(self.vm_id)
        assert self.world.is_clean()


@asynccontextmanager
async def create_scene(root: Path) -> AsyncIterator[Scene]:
    """Create a machine with data in memory."""
    root.mkdir()
    cut = Cut()
    world = World(root, cut)
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in (
            (MachineFolder, "write"),
            (writer, "_open"),
            (writer.SnapshotWriter, "_write"),
            (writer, "_put_in_place"),
            (writer, "discard"),
            (snapshots, "discard"),
        ):
            patched.setattr(owner, name, counted(cut, name, getattr(owner, name)))
        machines = MachineService(world.host())
        await machines.recover()
        vm_id = new_vm_id()
        shape = {"machine_kind": MachineKind.CLI, "memory_mib": 512, "vcpus": 1, "disk_mib": 64}
        view = await machines.create(CreateMachine.model_validate({"vm_id": vm_id, **shape}))
        assert view.pid is not None
        world.driver.memories[view.pid] = MEMORY
        scene = Scene(world, cut, vm_id, machines)
        yield scene
        cut.is_counting = False
        await scene.machines.close()
    for pid in world.driver.find_orphans([]):
        os.kill(pid, signal.SIGKILL)


def counted(cut: Cut, name: str, call: Callable[..., object]) -> Callable[..., object]:
    def counting(*args: object, **named: object) -> object:
        cut.point(name)
        return call(*args, **named)

    return counting


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


OPERATIONS = ["hibernate", "resume"]
FEWEST_POINTS = {"hibernate": 10, "resume": 8}
Do = Callable[[Scene, "asyncio.Task[None]"], None]
Check = Callable[[Scene], Awaitable[None]]


async def at_every_point(
    tmp_path: Path, operation: str, do: Do, check: Check, *, stays: bool = False
) -> None:
    """Interrupt the operation at each of its points in turn, and check."""
    for number in itertools.count():
        async with create_scene(tmp_path / str(number)) as scene:
            if operation == "resume":
                await scene.perform("hibernate")
            working = asyncio.create_task(scene.perform(operation))
            scene.cut.at, scene.cut.stays = number, stays
            scene.cut.do = partial(do, scene, working)
            scene.cut.is_counting = True
            with suppress(PolydevError, OSError, asyncio.CancelledError, Killed):
                await working
            scene.cut.is_counting = False
            try:
                await check(scene)
            except BaseException as error:
                error.add_note(f"at point {number} of {scene.cut.seen}")
                raise
            if scene.cut.count <= number:
                assert number >= FEWEST_POINTS[operation], scene.cut.seen
                return


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_agent_killed_at_any_step_leaves_a_running_or_hibernated_machine(
    tmp_path: Path, operation: str
) -> None:
    def kill(scene: Scene, working: object) -> None:
        raise Killed

    async def check(scene: Scene) -> None:
        await scene.restart_agent()
        await scene.assert_whole()
        await scene.assert_still_usable()

    await at_every_point(tmp_path, operation, kill, check, stays=True)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_caller_cancelled_at_any_step_leaves_a_running_or_hibernated_machine(
    tmp_path: Path, operation: str
) -> None:
    loop = asyncio.get_running_loop()

    def cancel(scene: Scene, working: asyncio.Task[None]) -> None:
        loop.call_soon_threadsafe(working.cancel)

    async def check(scene: Scene) -> None:
        await scene.assert_whole()
        await scene.assert_still_usable()

    await at_every_point(tmp_path, operation, cancel, check)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("is_full", [True, False])
async def test_failed_step_loses_nothing_or_boots_with_the_reason(
    tmp_path: Path, operation: str, is_full: bool
) -> None:
    def fail(scene: Scene, working: object) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise VmmFailed("It will not")

    async def check(scene: Scene) -> None:
        wake = scene.machines.view(scene.vm_id).wake
        if scene.state is MachineState.RUNNING and wake and wake.how == "booted":
            assert operation == "resume"
            assert wake.reason
            await scene.assert_booted()
        elif scene.state is MachineState.FAILED:
            await scene.assert_failed()
        else:
            await scene.restart_agent()
            await scene.assert_whole()
            await scene.assert_still_usable()

    await at_every_point(tmp_path, operation, fail, check)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_destroy_at_any_step_leaves_nothing(tmp_path: Path, operation: str) -> None:
    loop = asyncio.get_running_loop()
    destroying: list[asyncio.Task[None]] = []

    def destroy(scene: Scene, working: object) -> None:
        def begin() -> None:
            destroying.append(asyncio.create_task(scene.machines.destroy(scene.vm_id)))

        loop.call_soon_threadsafe(begin)

    async def check(scene: Scene) -> None:
        if not destroying:
            await scene.machines.destroy(scene.vm_id)
        while destroying:
            await destroying.pop()
        assert scene.world.is_clean()

    await at_every_point(tmp_path, operation, destroy, check)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_vmm_killed_at_any_step_leaves_a_usable_machine(
    tmp_path: Path, operation: str
) -> None:
    killed: list[int] = []

    def kill_vmm(scene: Scene, working: object) -> None:
        for pid in scene.world.driver.find_orphans([]):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    async def check(scene: Scene) -> None:
        async with asyncio.timeout(10):
            while set(killed) & set(scene.world.driver.find_orphans([])):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # lets the watcher of the VMM run
        async with asyncio.timeout(10):
            await scene.perform("resume")
        view = scene.machines.view(scene.vm_id)
        assert view.state is MachineState.RUNNING
        assert [view.pid] == scene.world.driver.find_orphans([])
        assert view.pid is not None
        assert process_state(view.pid) != "T"
        remembers = scene.world.driver.memories[view.pid] == MEMORY
        assert view.wake is None or remembers == (view.wake.how == "resumed")
        await scene.machines.destroy(scene.vm_id)
        assert scene.world.is_clean()

    await at_every_point(tmp_path, operation, kill_vmm, check)
