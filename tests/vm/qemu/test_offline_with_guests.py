"""Test writes to machines' disks before, during and after guest use."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import ext4_images as images
import pytest
from driver_worlds import QemuWorld, qemu_world
from ext4_images import AUTH, TOKEN, UPPER_AUTH

from polydev.hostagent.provisioning.offline_files import remove_offline, write_offline
from polydev.hostagent.vmm.contract import LaunchSpec, RunningVmm
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ImageInUse, VmmFailed

pytestmark = pytest.mark.vm
LIMIT_S = 240

OVERLAY = """
mount -t ext4 -o ro /dev/vda /lower
mount -t ext4 /dev/vdb /disk
mkdir -p /disk/upper /disk/work
mount -t overlay -o lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work overlay /root
"""
END = """
echo the end
umount /root; umount /disk; sync
poweroff -f
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as it:
        yield it


async def launch(world: QemuWorld, spec: LaunchSpec, marker: str) -> RunningVmm:
    """Launch a machine and wait until it prints `marker`."""
    vmm = await world.driver.launch(dataclasses.replace(spec, ready_marker=marker))
    async with asyncio.timeout(LIMIT_S):
        await vmm.wait_ready()
    return vmm


async def run_to_end(world: QemuWorld, spec: LaunchSpec) -> str:
    """Run a machine to its end; return its output."""
    vmm = await world.driver.launch(dataclasses.replace(spec, ready_marker="the end"))
    async with asyncio.timeout(LIMIT_S):
        await vmm.wait_ready()
        await vmm.wait()
    return (spec.folder / "console.log").read_text(errors="replace").replace("\r", "")


async def test_disk_is_refused_while_machine_runs_and_accepted_afterwards(world: QemuWorld) -> None:
    spec = await world.spec("echo up; while true; do sleep 1; done")
    vmm = await launch(world, spec, "up")
    before = spec.disk.stat().st_mtime_ns
    for call in (
        write_offline(spec.disk, [GuestFile(AUTH, TOKEN)]),
        remove_offline(spec.disk, [AUTH]),
    ):
        with pytest.raises(ImageInUse, match=r"disk\.img is in use"):
            await call
    assert spec.disk.stat().st_mtime_ns == before
    os.kill(vmm.pid, signal.SIGKILL)
    await vmm.wait()
    await write_offline(spec.disk, [GuestFile(AUTH, TOKEN)])
    assert images.content(spec.disk, UPPER_AUTH) == TOKEN


async def test_machine_does_not_start_during_disk_write(world: QemuWorld) -> None:
    spec = await world.spec("echo up; while true; do sleep 1; done")
    files = [GuestFile(f"/root/{number}", TOKEN) for number in range(30)]
    writing = asyncio.create_task(write_offline(spec.disk, files))
    await asyncio.sleep(0.05)
    with pytest.raises(VmmFailed, match="lock"):
        await world.driver.launch(spec)
    assert not writing.done(), "the write ended too early for this test"
    await writing
    images.assert_clean(spec.disk)
    vmm = await launch(world, spec, "up")
    await vmm.kill()


async def test_journal_of_crashed_machine_is_replayed_before_write(
    world: QemuWorld,
) -> None:
    init = (
        OVERLAY
        + """
    mkdir -p /root/root/.codex
    i=0
    while [ $i -lt 10000 ]; do : > /root/root/.codex/$i-a-name-of-some-length; i=$((i + 1)); done
    echo old > /root/root/.codex/auth.json
    sync
    (while true; do i=$((i + 1)); echo $i > /root/root/.codex/$i; rm /root/root/.codex/$((i - 5));
        mkdir /root/root/d$i; sync; done) 2>/dev/null &
    sleep 1
    echo busy
    while true; do sleep 1; done
    """
    )
    spec = await world.spec(init)
    vmm = await launch(world, spec, "busy")
    os.kill(vmm.pid, signal.SIGKILL)
    await vmm.wait()
    assert "needs_recovery" in images.inspect(spec.disk, "show_super_stats -h")
    files = [GuestFile(AUTH, TOKEN), GuestFile("/root/.claude/.credentials.json", TOKEN)]
    await write_offline(spec.disk, files)
    assert "needs_recovery" not in images.inspect(spec.disk, "show_super_stats -h")
    for path in (UPPER_AUTH, "/upper/root/.claude/.credentials.json"):
        assert images.content(spec.disk, path) == TOKEN
    images.assert_clean(spec.disk)
    assert len(images.names(spec.disk, "/upper/root/.codex")) > 10_000


async def test_guest_sees_written_files_and_not_those_it_removed(
    world: QemuWorld, tmp_path: Path
) -> None:
    def golden_fill(root: Path) -> None:
        folder = images.codex_folder(root)
        (folder / "config.toml").write_bytes(b"golden")
        (root / "root" / ".profile").write_bytes(b"golden")
        (root / "root" / ".claude").mkdir()
        (root / "root" / ".claude" / "golden").touch()

    (tmp_path / "golden").mkdir()
    golden = images.image_of(tmp_path / "golden", golden_fill)
    golden.chmod(0o644)
    os.chown(golden, 0, 0)
    look = """
    cd /root/root
    echo "modes $(stat -c %a:%u:%g . .codex .codex/auth.json | tr '\\n' ' ')"
    echo "token $(cat .codex/auth.json)"
    echo "codex $(ls -A .codex | tr '\\n' ' ')"
    echo "claude $(ls -A .claude | tr '\\n' ' ')"
    echo "home $(ls -A . | tr '\\n' ' ')"
    cd /
    """
    spec = await world.spec(OVERLAY + look + "rm -r /root/root/.claude\n" + END)
    spec = dataclasses.replace(spec, root_image=golden)
    await write_offline(spec.disk, [GuestFile(AUTH, TOKEN, mode=0o640, gid=7)], golden=golden)
    output = await run_to_end(world, spec)
    assert "modes 700:0:0 755:0:0 640:0:7 \n" in output
    assert f"token {TOKEN.decode()}\n" in output
    assert "codex auth.json config.toml \n" in output
    assert "claude golden \n" in output
    assert "home .claude .codex .profile \n" in output

    files = [GuestFile("/root/.claude/.credentials.json", TOKEN)]
    await write_offline(spec.disk, files, golden=golden)
    await remove_offline(spec.disk, [AUTH])
    (spec.folder / "console.log").unlink()
    output = await run_to_end(world, spec)
    assert "codex config.toml \n" in output
    assert "claude .credentials.json \n" in output, "a file that the guest removed came back"
    images.assert_clean(spec.disk)


async def test_unwritten_disk_stays_small(world: QemuWorld) -> None:
    init = OVERLAY + "sleep 20\n" + END
    spec = await world.spec(init, disk_mib=4096)
    tree = world.folder / "golden"
    tree.mkdir()
    golden = images.image_of(tree, lambda root: None)
    golden.chmod(0o644)
    await run_to_end(world, dataclasses.replace(spec, root_image=golden))
    assert spec.disk.stat().st_blocks * 512 <= 4 << 20
    subprocess.run(["e2fsck", "-fn", spec.disk], check=True, capture_output=True)
