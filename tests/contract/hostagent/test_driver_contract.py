"""The driver contract (`hostagent/vmm/contract.py`), tested against every driver."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver_worlds import (
    World,
    fake_firecracker_world,
    firecracker_world,
    leftover_files,
    qemu_world,
    simulated_world,
)
from memory_snapshot import MemorySnapshot

from polydev.hostagent.channel import Channel
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.vmm.contract import LaunchSpec, RunningVmm
from polydev.shared.domain import GuestFile, new_vm_id
from polydev.shared.errors import ChannelLost, PolydevError, SnapshotUnusable, VmmFailed
from polydev.shared.host_protocol import STDOUT, ExecRequest

WORLDS = {
    "firecracker": firecracker_world,
    "firecracker-standin": fake_firecracker_world,
    "qemu": qemu_world,
    "simulated": simulated_world,
}
WITH_PROCESSES = ["firecracker", "firecracker-standin", "qemu"]
"""Drivers whose machines are processes, which outlive the agent."""
READY_S = 240

pytestmark = pytest.mark.vm


@pytest.fixture(params=sorted(WORLDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with WORLDS[request.param](tmp_path) as it:
        yield it


on_processes = pytest.mark.parametrize("world", WITH_PROCESSES, indirect=True)


async def channel_of(spec: LaunchSpec, vmm: RunningVmm) -> Channel:
    keys = await make_keys(spec.folder / "keys")
    return Channel(vmm.open_channel, keys.host_public, keys.client_private.decode())


async def test_machine_becomes_ready_and_serves_ssh(world: World) -> None:
    vmm = await world.driver.launch(await world.spec())
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        channel = await vmm.open_channel()
        reported = await asyncio.get_running_loop().sock_recv(channel, 8)
        channel.close()
    assert reported == b"SSH-2.0-"
    await vmm.kill()
    with pytest.raises(ChannelLost):
        await vmm.open_channel()


async def test_kill_and_wait_are_idempotent_and_leave_nothing(world: World) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    waiting = asyncio.create_task(vmm.wait())
    await asyncio.gather(vmm.kill(), vmm.kill())
    first = await waiting
    await vmm.kill()
    assert await vmm.wait() == first
    await vmm.request_shutdown()
    assert leftover_files(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []
    await vmm.detach()


@on_processes
async def test_exit_before_ready_is_reported(world: World) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(dataclasses.replace(spec, ready_marker="never printed"))
    waiting = asyncio.create_task(vmm.wait_ready())
    await vmm.kill()
    with pytest.raises(VmmFailed, match=spec.vm_id):
        await waiting


async def test_failed_launch_leaves_nothing(world: World) -> None:
    spec = await world.spec()
    spec.config_drive.unlink()
    with pytest.raises(PolydevError) as caught:
        await world.driver.launch(spec)
    assert "config" in caught.value.message
    assert leftover_files(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


async def test_adopt_finds_nothing_without_a_vmm(world: World) -> None:
    assert await world.driver.adopt(await world.spec()) is None


async def test_machine_runs_on_after_relocation(world: World) -> None:
    """Output and leftovers are in the new folder."""
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        channel = await channel_of(spec, vmm)
        await channel.connect(READY_S)
        await vmm.pause()
        await vmm.pause()
        renamed = _renamed(spec)
        vmm.relocate(renamed)
        await vmm.resume()
        async with await channel.exec(ExecRequest(argv=["cat"])) as program:
            await program.write(b"still there")
            await program.write_eof()
            assert await program.read() == (STDOUT, b"still there")
        await channel.close()
    assert "POLYDEV" in (renamed.folder / "console.log").read_text()
    assert list(world.driver.find_orphans([renamed.folder])) == []
    await vmm.kill()
    assert leftover_files(renamed.folder) == set()
    assert not spec.folder.exists()
    assert list(world.driver.find_orphans([])) == []


@on_processes
async def test_relocated_machine_is_adopted(world: World) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    renamed = _renamed(spec)
    vmm.relocate(renamed)
    await vmm.detach()
    assert list(world.driver.find_orphans([renamed.folder])) == []
    adopted = await world.driver.adopt(renamed)
    assert adopted is not None
    assert adopted.pid == vmm.pid
    await adopted.kill()
    assert leftover_files(renamed.folder) == set()
    assert list(world.driver.find_orphans([])) == []


def _renamed(spec: LaunchSpec) -> LaunchSpec:
    vm_id = new_vm_id()
    folder = spec.folder.with_name(vm_id)
    spec.folder.rename(folder)
    disk, drive = folder / spec.disk.name, folder / spec.config_drive.name
    return dataclasses.replace(spec, vm_id=vm_id, folder=folder, disk=disk, config_drive=drive)


@on_processes
async def test_detached_machine_is_adopted(world: World) -> None:
    spec = await world.spec()
    launched = await world.driver.launch(spec)
    pid = launched.pid
    await launched.detach()
    adopted = await world.driver.adopt(spec)
    assert adopted is not None
    assert adopted.pid == pid
    async with asyncio.timeout(5):
        await adopted.wait_ready()
    await adopted.kill()
    assert leftover_files(spec.folder) == set()
    assert await world.driver.adopt(spec) is None


@on_processes
@pytest.mark.parametrize("adopted", [False, True])
async def test_external_kill_is_detected_and_leaves_nothing(world: World, adopted: bool) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    if adopted:
        await vmm.detach()
        found = await world.driver.adopt(spec)
        assert found is not None
        vmm = found
    waiting = asyncio.create_task(vmm.wait())
    os.kill(vmm.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        report = await waiting
    assert report.status in {-signal.SIGKILL, None}
    assert leftover_files(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


@on_processes
async def test_orphans_are_vmms_of_unknown_folders(world: World) -> None:
    mine, other = await world.spec(), await world.spec()
    vmms = [await world.driver.launch(spec) for spec in (mine, other)]
    assert list(world.driver.find_orphans([mine.folder, other.folder])) == []
    assert list(world.driver.find_orphans([mine.folder])) == [vmms[1].pid]
    for vmm in vmms:
        await vmm.kill()


async def test_saved_guest_stays_paused_and_restored_guest_has_its_memory(
    world: World,
) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        channel = await channel_of(spec, vmm)
        await channel.write_files([GuestFile("/run/thought", b"only in memory")])
        await channel.close()

        fingerprint = await world.driver.fingerprint(spec)
        await vmm.resume()  # idempotent
        await vmm.save(MemorySnapshot())
        with pytest.raises(ChannelLost):
            await (await channel_of(spec, vmm)).connect(1)
        await vmm.resume()
        channel = await channel_of(spec, vmm)
        await channel.write_files([GuestFile("/run/thought", b"something else")])
        await channel.close()

        saved = MemorySnapshot()
        await vmm.save(saved)
        await vmm.kill()
        with pytest.raises(VmmFailed):
            await vmm.save(MemorySnapshot())
        assert leftover_files(spec.folder) == set()

        restored = await world.driver.restore(spec, saved.source())
        assert await world.driver.fingerprint(spec) == fingerprint
        with pytest.raises(ChannelLost):
            await (await channel_of(spec, restored)).connect(1)
        await restored.resume()
        await restored.wait_ready()
        channel = await channel_of(spec, restored)
        assert await channel.read_file("/run/thought", 100) == b"something else"
        await channel.close()
    await restored.kill()
    assert leftover_files(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


async def test_size_changes_the_machines_fingerprint(world: World) -> None:
    spec = await world.spec()
    other = dataclasses.replace(spec, memory_mib=spec.memory_mib * 2)
    assert await world.driver.fingerprint(spec) != await world.driver.fingerprint(other)


async def test_failed_restore_leaves_nothing(world: World) -> None:
    spec = await world.spec()
    with pytest.raises((SnapshotUnusable, VmmFailed)):
        await world.driver.restore(spec, MemorySnapshot(bytearray(b"no memory")).source())
    assert leftover_files(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []
