"""Test interrupted saves and restores of the QEMU driver with a counting guest.

One small guest goes through every case. It lost nothing if it continues from its last number.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver_worlds import QemuWorld, leftover_files, qemu_world, until
from memory_snapshot import MemorySnapshot

from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.qemu import migration
from polydev.hostagent.vmm.qemu.running import RunningQemu
from polydev.shared.errors import DiskFull, VmmFailed

pytestmark = pytest.mark.vm
COUNT = """
echo MARK
n=0
while true; do echo count $n.; n=$((n + 1)); usleep 100000; done
"""
MIDDLE = 4_000_000
"""Bytes after which saves and restores are interrupted."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as it:
        yield it


def last_number(spec: LaunchSpec) -> int:
    """Return the last number that the guest printed, or -1 before the first."""
    console = (spec.folder / "console.log").read_text("utf-8", "replace")
    numbers = [int(number) for number in re.findall(r"count (\d+)\.", console)]
    assert numbers.count(0) <= 1, "the guest rebooted"
    return max(numbers, default=-1)


async def assert_counting_continues(spec: LaunchSpec, vmm: RunningQemu) -> None:
    assert await migration.is_paused(vmm._session)
    before = last_number(spec)
    await vmm.resume()
    await until(lambda: last_number(spec) > before + 2)
    assert not await migration.is_paused(vmm._session)


class Blocker:
    """Callback that blocks in the middle of a transfer."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def __call__(self, offset: int) -> None:
        if offset > MIDDLE:
            self.event.set()
            await asyncio.Event().wait()


async def test_guest_survives_cancelled_save_and_restore(
    world: QemuWorld,
) -> None:
    spec = dataclasses.replace(await world.spec(COUNT), ready_marker="MARK")
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(240):
        await vmm.wait_ready()
        await until(lambda: last_number(spec) > 0)
        await check_full_sink(spec, vmm)
        await check_cancelled_save(spec, vmm)
        vmm = await check_agent_killed_while_saving(world, spec, vmm)
        snapshot = MemorySnapshot()
        await vmm.save(snapshot)
        await vmm.detach()
        adopted = await world.driver.adopt(spec)  # complete and paused
        assert adopted is not None
        await assert_counting_continues(spec, adopted)
        await adopted.save(snapshot := MemorySnapshot())
        await adopted.kill()
        await check_cancelled_restore(world, spec, snapshot)
        restored = await world.driver.restore(spec, snapshot.source())
        await assert_counting_continues(spec, restored)
        await check_vmm_killed_while_saving(world, spec, restored)


async def check_full_sink(spec: LaunchSpec, vmm: RunningQemu) -> None:
    async def full(offset: int) -> None:
        if offset > MIDDLE:
            raise DiskFull("No room")

    with pytest.raises(DiskFull):
        await vmm.save(MemorySnapshot(on_piece=full))
    await assert_counting_continues(spec, vmm)


async def check_cancelled_save(spec: LaunchSpec, vmm: RunningQemu) -> None:
    saving = asyncio.create_task(vmm.save(MemorySnapshot(on_piece=(blocker := Blocker()))))
    await blocker.event.wait()
    saving.cancel()
    await asyncio.wait({saving})
    await assert_counting_continues(spec, vmm)


async def check_agent_killed_while_saving(
    world: QemuWorld, spec: LaunchSpec, vmm: RunningQemu
) -> RunningQemu:
    saving = asyncio.create_task(vmm.save(MemorySnapshot(on_piece=(blocker := Blocker()))))
    await blocker.event.wait()
    await vmm.detach()  # closes the sockets, as the kernel does for a killed agent
    saving.cancel()
    await asyncio.wait({saving})
    adopted = await world.driver.adopt(spec)
    assert adopted is not None
    await assert_counting_continues(spec, adopted)
    return adopted


async def check_cancelled_restore(
    world: QemuWorld, spec: LaunchSpec, snapshot: MemorySnapshot
) -> None:
    restoring = asyncio.create_task(
        world.driver.restore(spec, snapshot.source(on_piece=(blocker := Blocker())))
    )
    await blocker.event.wait()
    restoring.cancel()
    await asyncio.wait({restoring})
    assert leftover_files(spec.folder) == set()
    assert world.pids() == []


async def check_vmm_killed_while_saving(
    world: QemuWorld, spec: LaunchSpec, vmm: RunningQemu
) -> None:
    killed = False

    async def kill(offset: int) -> None:
        nonlocal killed
        if offset > MIDDLE and not killed:
            killed = True
            os.kill(vmm.pid, signal.SIGKILL)

    with pytest.raises(VmmFailed):
        await vmm.save(MemorySnapshot(on_piece=kill))
    assert (await vmm.wait()).status == -signal.SIGKILL
    assert leftover_files(spec.folder) == set()
    assert world.pids() == []
