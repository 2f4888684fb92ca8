"""Guarantees of the Firecracker driver beyond the contract, tested with the fakes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import interrupted_launch
import pytest
from driver_worlds import FirecrackerWorld, fake_firecracker_world, leftover_files

from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.firecracker import api, ipc, session
from polydev.hostagent.vmm.firecracker.api import Api, ApiError
from polydev.hostagent.vmm.firecracker.jail import cgroup, jail, mounts
from polydev.shared.errors import (
    AlreadyRunning,
    DiskFull,
    PolydevError,
    SnapshotUnusable,
    VmmFailed,
)
from polydev.testing.fake_firecracker import install

pytestmark = pytest.mark.vm
READY_S = 60


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[FirecrackerWorld]:
    async with fake_firecracker_world(tmp_path) as it:
        yield it


class MemorySnapshot:
    """A snapshot in this process."""

    def __init__(self) -> None:
        self.content = b""

    async def write(self, content: bytes) -> None:
        self.content += content

    async def read(self) -> bytes:
        content, self.content = self.content, b""
        return content


def cgroups_of(world: FirecrackerWorld) -> set[str]:
    mounted = cgroup.root()
    if mounted is None or not (mounted / world.netns).is_dir():
        return set()
    return {path.name for path in (mounted / world.netns).iterdir() if path.is_dir()}


def nothing_is_left(world: FirecrackerWorld, spec: LaunchSpec) -> bool:
    return (
        leftover_files(spec.folder) == set()
        and not list(jail.find_in_folder(world.machines_dir.resolve()))
        and cgroups_of(world) == set()
        and str(spec.folder) not in Path("/proc/self/mounts").read_text()
    )


async def test_vmm_is_jailed_according_to_the_kernel(world: FirecrackerWorld) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    process = Path(f"/proc/{vmm.pid}")
    status = (process / "status").read_text()
    assert f"Uid:\t{spec.uid}\t{spec.uid}\t{spec.uid}\t{spec.uid}\n" in status
    assert f"Gid:\t{spec.uid}\t{spec.uid}\t{spec.uid}\t{spec.uid}\n" in status
    assert "CapEff:\t0000000000000000\n" in status
    lines = (process / "limits").read_text().splitlines()
    limits = {line[:25].strip(): line[26:].split()[:2] for line in lines[1:]}
    assert limits["Max open files"] == ["256", "256"]
    assert limits["Max core file size"] == ["0", "0"]
    netns = Path(f"/run/netns/{spec.netns}").stat().st_ino
    assert (process / "ns/net").stat().st_ino == netns
    lines = (process / "mounts").read_text().splitlines()
    mounted = {line.split()[1]: line.split()[3].split(",") for line in lines}
    assert set(mounted) == {
        "/", "/kernel", "/initramfs", "/errors", "/metrics", "/root", "/disk", "/config",
    }  # fmt: skip
    for name in ("/kernel", "/initramfs", "/root", "/config"):
        assert "ro" in mounted[name]
    assert spec.root_image.stat().st_uid == 0, "golden images belong to root"
    if cgroup.root():
        assert f"0::/{spec.netns}/{spec.vm_id}\n" in (process / "cgroup").read_text()
    assert str(spec.folder) not in Path("/proc/self/mounts").read_text(), "it is the VMM's alone"
    await vmm.kill()
    assert nothing_is_left(world, spec)


async def test_machine_has_one_vmm(world: FirecrackerWorld) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    with pytest.raises(AlreadyRunning):
        await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
    await vmm.kill()


async def test_ctrl_alt_del_shuts_a_guest_down(world: FirecrackerWorld) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        await vmm.request_shutdown()
        assert (await vmm.wait()).status == 0
    assert nothing_is_left(world, spec)


async def test_full_host_disk_is_reported_as_disk_full(world: FirecrackerWorld) -> None:
    spec = dataclasses.replace(await world.spec(), ready_marker="never printed")
    vmm = await world.driver.launch(spec)
    waiting = asyncio.create_task(vmm.wait_ready())
    with (spec.folder / "errors.fifo").open("wb") as vmm_output:
        vmm_output.write(b'Os { code: 28, message: "No space left on device" }\n')
    async with asyncio.timeout(READY_S):
        with pytest.raises(DiskFull):
            await waiting
    await vmm.kill()


async def test_hanging_vmm_is_killed_and_reported(
    world: FirecrackerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WATCH_EVERY_S", 0.05)
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    monkeypatch.setattr(api, "_LIMIT_S", 0.1)
    os.kill(vmm.pid, signal.SIGSTOP)
    async with asyncio.timeout(READY_S):
        report = await vmm.wait()
    assert "Killed because it stopped answering" in report.output
    assert nothing_is_left(world, spec)


async def test_snapshot_files_are_in_memory_and_removed(
    world: FirecrackerWorld,
) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    root = Path(f"/proc/{vmm.pid}/root")
    seen: set[str] = set()

    class CheckingSnapshot(MemorySnapshot):
        async def write(self, content: bytes) -> None:
            seen.update(path.name for path in root.iterdir())
            await super().write(content)

    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        saved = CheckingSnapshot()
        await vmm.save(saved)
        assert {"snapshot.memory", "snapshot.state"} <= seen
        assert not any(path.name.startswith("snapshot") for path in root.iterdir())
        await vmm.detach()
        adopted = await world.driver.adopt(spec)
        assert adopted is not None
        assert await adopted._session.api.state() == "Paused"
        await adopted.kill()
        restored = await world.driver.restore(spec, saved)
        root = Path(f"/proc/{restored.pid}/root")
        assert not any(path.name.startswith("snapshot") for path in root.iterdir())
        await restored.resume()
        again = MemorySnapshot()
        await restored.save(again)
        assert again.content
        await restored.kill()
    assert nothing_is_left(world, spec)


async def test_full_sink_leaves_the_guest_paused(
    world: FirecrackerWorld,
) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)

    class Full(MemorySnapshot):
        async def write(self, content: bytes) -> None:
            raise VmmFailed("no room")

    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        with pytest.raises(VmmFailed, match="no room"):
            await vmm.save(Full())
        assert await vmm._session.api.state() == "Paused"
        await vmm.resume()
        assert await vmm._session.api.state() == "Running"
    await vmm.kill()


async def test_snapshot_of_another_version_is_refused(
    world: FirecrackerWorld, tmp_path: Path
) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        saved = MemorySnapshot()
        await vmm.save(saved)
        await vmm.kill()
        install(tmp_path / "bin", version="1.14.0")
        with pytest.raises(SnapshotUnusable, match=r"version 1\.13\.1"):
            await world.driver.restore(spec, saved)
    assert nothing_is_left(world, spec)


async def test_forbidden_requests_are_refused(world: FirecrackerWorld) -> None:
    spec = await world.spec()
    vmm = await world.driver.launch(spec)
    api = vmm._session.api
    for asked in (api.start(), api.put_vsock("/other", 3), api.put_entropy()):
        with pytest.raises(ApiError, match="after starting"):
            await asked
    await api.patch_balloon(amount_mib=64)
    assert (await api.balloon_statistics())["target_mib"] == 64
    await vmm.kill()


# Interrupted launches


@pytest.mark.parametrize("after_s", [0, 0.05])
async def test_cancelled_launch_leaves_nothing(world: FirecrackerWorld, after_s: float) -> None:
    spec = await world.spec()
    launching = asyncio.create_task(world.driver.launch(spec))
    await asyncio.sleep(after_s)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert nothing_is_left(world, spec)


REQUESTS = 13
"""Requests of a launch, including the first status query."""


@pytest.mark.parametrize("at", [0, 5, REQUESTS - 1])
async def test_launch_cancelled_during_a_request_leaves_nothing(
    world: FirecrackerWorld, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    spec = await world.spec()
    ask, left = Api._request, at

    async def counted(self: Api, *what: Any) -> Any:
        nonlocal left
        if left == 0:
            launching.cancel()
        left -= 1
        return await ask(self, *what)

    monkeypatch.setattr(Api, "_request", counted)
    launching = asyncio.create_task(world.driver.launch(spec))
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert nothing_is_left(world, spec)


async def test_find_orphans_keeps_cgroups_of_starting_machines(world: FirecrackerWorld) -> None:
    spec = await world.spec()
    mounted = cgroup.root()
    if mounted is None:
        pytest.skip("this host has no cgroup v2")
    made_by_a_jailer = mounted / world.netns / spec.vm_id
    made_by_a_jailer.mkdir(parents=True)
    assert list(world.driver.find_orphans([])) == []
    assert made_by_a_jailer.exists()
    shutil.rmtree(spec.folder)
    assert list(world.driver.find_orphans([])) == []
    assert not made_by_a_jailer.exists()


async def test_find_orphans_works_without_machines_dir(world: FirecrackerWorld) -> None:
    shutil.rmtree(world.machines_dir)
    assert list(world.driver.find_orphans([])) == []


def kill_all(world: FirecrackerWorld) -> None:
    """Kill each VMM and wait for its end. Blocking, so that nothing cleans up concurrently."""
    for pid, _, _ in list(jail.find_in_folder(world.machines_dir.resolve())):
        os.kill(pid, signal.SIGKILL)
    while any(jail.find_in_folder(world.machines_dir.resolve())):
        time.sleep(0.01)


@pytest.mark.parametrize("at", [0, 5, REQUESTS - 1])
async def test_vmm_killed_during_launch_leaves_nothing(
    world: FirecrackerWorld, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    spec = await world.spec()
    ask, left = Api._request, at
    remove_from = ipc.remove_files

    def remove_slowly(folder: Path) -> None:
        time.sleep(0.2)  # time for concurrent users of the folder
        remove_from(folder)

    monkeypatch.setattr(ipc, "remove_files", remove_slowly)

    async def counted(self: Api, *what: Any) -> Any:
        nonlocal left
        if left == 0:
            kill_all(world)
        left -= 1
        return await ask(self, *what)

    monkeypatch.setattr(Api, "_request", counted)
    with pytest.raises(PolydevError):
        await world.driver.launch(spec)
    assert left < 0, "the VMM was killed"
    assert nothing_is_left(world, spec)


async def interrupt_launch(world: FirecrackerWorld, spec: LaunchSpec, at: int) -> None:
    """Run an agent that kills itself before request `at` of a launch."""
    asked = {
        "spec": {k: str(v) if isinstance(v, Path) else v
                 for k, v in dataclasses.asdict(spec).items()},
        "firecracker": str(world.binaries.firecracker),
        "jailer": str(world.binaries.jailer),
        "parent_cgroup": world.netns,
        "at": at,
    }  # fmt: skip
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        interrupted_launch.__file__,
        json.dumps(asked),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert await agent.wait() == -signal.SIGKILL


@pytest.mark.parametrize("at", [-1, 5, REQUESTS - 1])
async def test_adopt_cleans_up_after_an_agent_killed_during_launch(
    world: FirecrackerWorld, at: int
) -> None:
    spec = await world.spec()
    await interrupt_launch(world, spec, at)
    if at >= 0:
        assert len(list(world.driver.find_orphans([]))) == 1
    assert await world.driver.adopt(spec) is None
    assert nothing_is_left(world, spec)


async def test_orphans_of_a_dead_agent_are_found(
    world: FirecrackerWorld,
) -> None:
    spec = await world.spec()
    await interrupt_launch(world, spec, 3)
    before = dict(mounts.find_marked())
    (pid,) = world.driver.find_orphans([])
    assert before[pid] == spec.folder.resolve()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(READY_S):
        while world.driver.find_orphans([]):
            await asyncio.sleep(0.01)
        shutil.rmtree(spec.folder)  # as the orphan clean-up does
        while world.driver.find_orphans([]) or cgroups_of(world):
            await asyncio.sleep(0.01)
