"""The driver contract (`hostd/vmm/vmm.py`), held against every driver there is."""

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
    firecracker_standin_world,
    firecracker_world,
    left_in,
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
    "firecracker-standin": firecracker_standin_world,
    "qemu": qemu_world,
    "simulated": simulated_world,
}
WITH_PROCESSES = ["firecracker", "firecracker-standin", "qemu"]
"""The drivers whose machines are processes, which go on without the agent."""
READY_S = 240

pytestmark = pytest.mark.vm


@pytest.fixture(params=sorted(WORLDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with WORLDS[request.param](tmp_path) as made:
        yield made


on_processes = pytest.mark.parametrize("world", WITH_PROCESSES, indirect=True)


async def channel_of(spec: LaunchSpec, vmm: RunningVmm) -> Channel:
    keys = await make_keys(spec.folder / "keys")
    return Channel(vmm.open_channel, keys.host_public, keys.client_private.decode())


async def test_a_machine_becomes_ready_and_its_channel_speaks_ssh(world: World) -> None:
    vmm = await world.driver.launch(await world.spec())
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        channel = await vmm.open_channel()
        said = await asyncio.get_running_loop().sock_recv(channel, 8)
        channel.close()
    assert said == b"SSH-2.0-"
    await vmm.kill()
    with pytest.raises(ChannelLost):
        await vmm.open_channel()


async def test_killing_and_waiting_may_be_asked_often_and_nothing_remains(world: World) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    waiting = asyncio.create_task(vmm.wait())
    await asyncio.gather(vmm.kill(), vmm.kill())
    first = await waiting
    await vmm.kill()
    assert await vmm.wait() == first
    await vmm.request_shutdown()
    assert left_in(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []
    await vmm.detach()


@on_processes
async def test_a_machine_that_ends_before_it_is_ready_says_so(world: World) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(dataclasses.replace(spec, ready_marker="never printed"))
    waiting = asyncio.create_task(vmm.wait_ready())
    await vmm.kill()
    with pytest.raises(VmmFailed, match=spec.vm_id):
        await waiting


async def test_a_launch_that_fails_leaves_nothing(world: World) -> None:
    spec = await world.spec()
    spec.config_drive.unlink()
    with pytest.raises(PolydevError) as caught:
        await world.driver.launch(spec)
    assert "config" in caught.value.message
    assert left_in(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


async def test_nothing_is_adopted_where_nothing_runs(world: World) -> None:
    assert await world.driver.adopt(await world.spec()) is None


async def test_a_machine_goes_on_under_another_name(world: World) -> None:
    """What is printed, and what is left when it ends, is at its new place."""
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
    assert left_in(renamed.folder) == set()
    assert not spec.folder.exists()
    assert list(world.driver.find_orphans([])) == []


@on_processes
async def test_a_machine_that_was_renamed_is_found_again(world: World) -> None:
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
    assert left_in(renamed.folder) == set()
    assert list(world.driver.find_orphans([])) == []


def _renamed(spec: LaunchSpec) -> LaunchSpec:
    vm_id = new_vm_id()
    folder = spec.folder.with_name(vm_id)
    spec.folder.rename(folder)
    disk, drive = folder / spec.disk.name, folder / spec.config_drive.name
    return dataclasses.replace(spec, vm_id=vm_id, folder=folder, disk=disk, config_drive=drive)


@on_processes
async def test_a_machine_that_was_let_go_is_found_again(world: World) -> None:
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
    assert left_in(spec.folder) == set()
    assert await world.driver.adopt(spec) is None


@on_processes
@pytest.mark.parametrize("adopted", [False, True])
async def test_a_vmm_killed_from_outside_is_noticed_and_leaves_nothing(
    world: World, adopted: bool
) -> None:
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
    assert left_in(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


@on_processes
async def test_leftovers_are_the_vmms_of_nobodys_folder(world: World) -> None:
    mine, other = await world.spec(), await world.spec()
    vmms = [await world.driver.launch(spec) for spec in (mine, other)]
    assert list(world.driver.find_orphans([mine.folder, other.folder])) == []
    assert list(world.driver.find_orphans([mine.folder])) == [vmms[1].pid]
    for vmm in vmms:
        await vmm.kill()


async def test_a_guest_that_was_saved_stands_still_and_one_that_is_restored_remembers(
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
        await vmm.resume()  # one that runs runs on
        await vmm.save(MemorySnapshot())
        with pytest.raises(ChannelLost):
            await (await channel_of(spec, vmm)).connect(1)
        await vmm.resume()
        channel = await channel_of(spec, vmm)
        await channel.write_files([GuestFile("/run/thought", b"something else")])
        await channel.close()

        kept = MemorySnapshot()
        await vmm.save(kept)
        await vmm.kill()
        with pytest.raises(VmmFailed):
            await vmm.save(MemorySnapshot())
        assert left_in(spec.folder) == set()

        restored = await world.driver.restore(spec, kept.source())
        assert await world.driver.fingerprint(spec) == fingerprint
        with pytest.raises(ChannelLost):
            await (await channel_of(spec, restored)).connect(1)
        await restored.resume()
        await restored.wait_ready()
        channel = await channel_of(spec, restored)
        assert await channel.read_file("/run/thought", 100) == b"something else"
        await channel.close()
    await restored.kill()
    assert left_in(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []


async def test_machines_of_another_size_do_not_fit(world: World) -> None:
    spec = await world.spec()
    other = dataclasses.replace(spec, memory_mib=spec.memory_mib * 2)
    assert await world.driver.fingerprint(spec) != await world.driver.fingerprint(other)


async def test_a_restore_that_fails_leaves_nothing(world: World) -> None:
    spec = await world.spec()
    with pytest.raises((SnapshotUnusable, VmmFailed)):
        await world.driver.restore(spec, MemorySnapshot(bytearray(b"no memory")).source())
    assert left_in(spec.folder) == set()
    assert list(world.driver.find_orphans([])) == []
