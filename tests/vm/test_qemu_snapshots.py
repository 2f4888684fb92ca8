"""What the QEMU driver does when saving or restoring is cut, with a real guest that counts.

One small guest goes through all of it: as long as it counts on from where it was, it lost nothing.
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
from driver_worlds import QemuWorld, left_in, qemu_world, until
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
"""Bytes after which saving and restoring are cut."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as made:
        yield made


def counted(spec: LaunchSpec) -> int:
    """How far the guest has counted, as far as it has said; -1 before it began."""
    console = (spec.folder / "console.log").read_text("utf-8", "replace")
    numbers = [int(number) for number in re.findall(r"count (\d+)\.", console)]
    assert numbers.count(0) <= 1, "it was booted again"
    return max(numbers, default=-1)


async def counts_on(spec: LaunchSpec, vmm: RunningQemu) -> None:
    assert await migration.is_paused(vmm._session)
    before = counted(spec)
    await vmm.resume()
    await until(lambda: counted(spec) > before + 2)
    assert not await migration.is_paused(vmm._session)


class Reached:
    """Somebody comes to the middle, and goes no further."""

    def __init__(self) -> None:
        self.it = asyncio.Event()

    async def __call__(self, place: int) -> None:
        if place > MIDDLE:
            self.it.set()
            await asyncio.Event().wait()


async def test_guest_survives_cancelled_save_and_restore(
    world: QemuWorld,
) -> None:
    spec = dataclasses.replace(await world.spec(COUNT), ready_marker="MARK")
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(240):
        await vmm.wait_ready()
        await until(lambda: counted(spec) > 0)
        await a_sink_that_is_full(spec, vmm)
        await a_caller_that_goes_away(spec, vmm)
        vmm = await an_agent_that_dies_while_it_saves(world, spec, vmm)
        kept = MemorySnapshot()
        await vmm.save(kept)
        await vmm.detach()
        adopted = await world.driver.adopt(spec)  # whole, and standing still
        assert adopted is not None
        await counts_on(spec, adopted)
        await adopted.save(kept := MemorySnapshot())
        await adopted.kill()
        await restoring_that_is_cut(world, spec, kept)
        restored = await world.driver.restore(spec, kept.source())
        await counts_on(spec, restored)
        await a_vmm_that_dies_while_it_is_saved(world, spec, restored)


async def a_sink_that_is_full(spec: LaunchSpec, vmm: RunningQemu) -> None:
    async def full(place: int) -> None:
        if place > MIDDLE:
            raise DiskFull("No room")

    with pytest.raises(DiskFull):
        await vmm.save(MemorySnapshot(on_piece=full))
    await counts_on(spec, vmm)


async def a_caller_that_goes_away(spec: LaunchSpec, vmm: RunningQemu) -> None:
    saving = asyncio.create_task(vmm.save(MemorySnapshot(on_piece=(reached := Reached()))))
    await reached.it.wait()
    saving.cancel()
    await asyncio.wait({saving})
    await counts_on(spec, vmm)


async def an_agent_that_dies_while_it_saves(
    world: QemuWorld, spec: LaunchSpec, vmm: RunningQemu
) -> RunningQemu:
    saving = asyncio.create_task(vmm.save(MemorySnapshot(on_piece=(reached := Reached()))))
    await reached.it.wait()
    await vmm.detach()  # as the kernel hangs up for an agent that was killed
    saving.cancel()
    await asyncio.wait({saving})
    adopted = await world.driver.adopt(spec)
    assert adopted is not None
    await counts_on(spec, adopted)
    return adopted


async def restoring_that_is_cut(world: QemuWorld, spec: LaunchSpec, kept: MemorySnapshot) -> None:
    restoring = asyncio.create_task(
        world.driver.restore(spec, kept.source(on_piece=(reached := Reached())))
    )
    await reached.it.wait()
    restoring.cancel()
    await asyncio.wait({restoring})
    assert left_in(spec.folder) == set()
    assert world.pids() == []


async def a_vmm_that_dies_while_it_is_saved(
    world: QemuWorld, spec: LaunchSpec, vmm: RunningQemu
) -> None:
    killed = False

    async def kill(place: int) -> None:
        nonlocal killed
        if place > MIDDLE and not killed:
            killed = True
            os.kill(vmm.pid, signal.SIGKILL)

    with pytest.raises(VmmFailed):
        await vmm.save(MemorySnapshot(on_piece=kill))
    assert (await vmm.wait()).status == -signal.SIGKILL
    assert left_in(spec.folder) == set()
    assert world.pids() == []
