"""Test the QEMU driver beyond the driver contract, with real machines."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver_worlds import (
    STAY,
    UID,
    QemuWorld,
    boot_files,
    leftover_files,
    qemu_world,
    script_spec,
    until,
)

from polydev.hostagent.system import sandbox
from polydev.hostagent.vmm import vmm_session
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.qemu import QemuDriver
from polydev.shared.errors import (
    AlreadyRunning,
    DiskFull,
    MissingImage,
    MissingTool,
    NetworkFailed,
    PolydevError,
    VmmFailed,
)

pytestmark = pytest.mark.vm
READY_S = 240
PRINT_FOREVER = """
line=0123456789012345678901234567890123456789012345678901234567890123456789012345678
echo {marker}
while true; do echo $line$line$line$line$line$line$line$line; done
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as it:
        yield it


async def test_vmm_is_unprivileged_in_vm_namespace(world: QemuWorld) -> None:
    vmm = await world.driver.launch(await script_spec(world, STAY))
    status = Path(f"/proc/{vmm.pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert f"Gid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert "Groups:\t \n" in status
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    last = Path(f"/proc/{vmm.pid}/oom_score_adj").read_text()
    assert last == "1000\n", "the OOM killer would pick another process"
    inside = Path(f"/proc/{vmm.pid}/ns/net").stat().st_ino
    assert inside == Path(f"/run/netns/{world.netns}").stat().st_ino
    limits = Path(f"/proc/{vmm.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max file size +\d+ +\d+ +bytes", limits), "the log may fill the host's disk"
    await vmm.kill()
    assert not Path(f"/proc/{vmm.pid}").exists(), "the killed VMM was not reaped"


async def test_drives_and_nics_keep_their_order(world: QemuWorld) -> None:
    init = """
    for drive in vda vdb vdc; do
        echo "$drive=$(cat /sys/block/$drive/size),$(cat /sys/block/$drive/ro)"
    done
    for nic in eth0 eth1; do echo "$nic=$(cat /sys/class/net/$nic/address)"; done
    echo {marker}
    poweroff -f
    """
    spec = await script_spec(world, init)
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
        assert (await vmm.wait()).status == 0
    console = (spec.folder / "console.log").read_text()
    for path, drive, read_only in (
        (spec.root_image, "vda", 1),
        (spec.disk, "vdb", 0),
        (spec.config_drive, "vdc", 1),
    ):
        assert f"{drive}={path.stat().st_size // 512},{read_only}\n" in console
    assert f"eth0={spec.mac}" in console
    assert f"eth1={spec.channel_mac}" in console


async def test_endless_guest_output_fills_bounded_log(
    world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 * 1024
    monkeypatch.setattr(vmm_session, "CONSOLE_LOG_BYTES", limit)
    spec = await script_spec(world, PRINT_FOREVER)
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
    logs, turned = set(), 0
    cpu_s, start_s = time.process_time(), time.monotonic()
    while turned < 5:
        state = (spec.folder / "console.log").stat()
        turned += state.st_ino not in logs
        logs = {state.st_ino}
        assert sum(map(size_of, spec.folder.glob("*console.log*"))) <= 3 * limit
        await asyncio.sleep(0.05)
        assert time.monotonic() - start_s < READY_S
    assert (time.process_time() - cpu_s) / (time.monotonic() - start_s) < 0.5
    await vmm.kill()
    assert 0 < (spec.folder / "console.log").stat().st_size <= 3 * limit


def size_of(path: Path) -> int:
    """Return a file's size, or 0 during its rotation."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def test_marker_is_found_behind_flood(world: QemuWorld) -> None:
    init = """
    i=0
    while [ $i -lt 3000 ]; do
        echo MARMARMAMARK_MAMARK__MARMAMA 0123456789012345678901234567890123456789012345
        i=$((i + 1))
    done
    echo -n MA; sleep 1; echo {marker}
    while true; do sleep 1; done
    """
    spec = await script_spec(world, init, marker="RK 0123456789abcdef")
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
    await vmm.kill()  # flushes its output
    assert (spec.folder / "console.log").read_bytes().count(b"MARMARMA") == 3000


async def test_failed_guest_boot_is_quoted(world: QemuWorld) -> None:
    init = 'echo "POLYDEV-FAILED overlay \\033[31mno room"; poweroff -f\n'
    spec = await script_spec(world, init)
    vmm = await world.driver.launch(spec)
    with pytest.raises(VmmFailed, match="POLYDEV-FAILED overlay") as caught:
        async with asyncio.timeout(READY_S):
            await vmm.wait_ready()
    assert "console.log" in caught.value.hint
    assert caught.value.line().isprintable()


async def test_full_host_is_distinct_from_broken_guest(world: QemuWorld) -> None:
    init = """
    mount -t ext4 /dev/vdb /disk
    dd if=/dev/zero bs=64k count=400 | tr '\\0' x > /disk/big
    sync
    while true; do sleep 1; done
    """
    spec = await script_spec(world, init)
    (room := world.folder / "room").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", room], check=True)
    try:
        subprocess.run(["cp", "--sparse=always", "-p", spec.disk, room / "disk.img"], check=True)
        vmm = await world.driver.launch(dataclasses.replace(spec, disk=room / "disk.img"))
        try:
            with pytest.raises(DiskFull, match=str(room)):
                async with asyncio.timeout(READY_S):
                    await vmm.wait_ready()
        finally:
            await vmm.kill()
    finally:
        subprocess.run(["umount", room], check=True)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "root_image", "disk", "config_drive"])
async def test_missing_file_is_named(world: QemuWorld, name: str) -> None:
    spec = await script_spec(world, STAY)
    gone = spec.folder / f"no-{name}"
    with pytest.raises(MissingImage, match=gone.name):
        await world.driver.launch(dataclasses.replace(spec, **{name: gone}))  # type: ignore[arg-type]
    assert leftover_files(spec.folder) == set()


async def test_unreadable_file_is_named(world: QemuWorld) -> None:
    spec = await script_spec(world, STAY)
    spec.disk.chmod(0o600)
    os.chown(spec.disk, 0, 0)
    with pytest.raises(VmmFailed, match=f"is not readable by the VMM's user, {UID}"):
        await world.driver.launch(spec)
    assert leftover_files(spec.folder) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_mib": 1 << 40}, "memory|ram"),
        ({"mac": "no mac"}, "mac"),
        ({"vcpus": 5000}, "cpus"),
    ],
)
async def test_qemu_refusal_is_quoted(
    world: QemuWorld, change: dict[str, object], message: str
) -> None:
    spec = await script_spec(world, STAY)
    with pytest.raises(VmmFailed, match=f"(?i){message}") as caught:
        await world.driver.launch(dataclasses.replace(spec, **change))  # type: ignore[arg-type]
    assert len(caught.value.message) < 1200
    assert leftover_files(spec.folder) == set()
    assert world.pids() == []


async def test_machine_cannot_be_started_twice(world: QemuWorld) -> None:
    spec = await script_spec(world, STAY)
    vmm = await world.driver.launch(spec)
    with pytest.raises(AlreadyRunning, match=str(vmm.pid)):
        await world.driver.launch(spec)
    other = dataclasses.replace(await script_spec(world, STAY), disk=spec.disk)
    with pytest.raises(VmmFailed, match="lock"):
        await world.driver.launch(other)
    third = dataclasses.replace(await script_spec(world, STAY), channel_port=spec.channel_port)
    with pytest.raises(VmmFailed, match="host forwarding"):
        await world.driver.launch(third)
    fourth = dataclasses.replace(await script_spec(world, STAY), tap=spec.tap)
    with pytest.raises(NetworkFailed, match=spec.tap):
        await world.driver.launch(fourth)
    fifth = dataclasses.replace(fourth, tap="tap-none")
    with pytest.raises(NetworkFailed, match="tap-none"):
        await world.driver.launch(fifth)
    assert world.pids() == [vmm.pid]
    await vmm.kill()


async def test_folder_may_have_long_path(world: QemuWorld) -> None:
    spec = await script_spec(world, STAY)
    folder = world.machines_dir / ("x" * 120)
    folder.mkdir()
    vmm = await world.driver.launch(dataclasses.replace(spec, folder=folder))
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
    await vmm.kill()
    assert leftover_files(folder) == set()


async def test_missing_qemu_names_its_package(
    world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await script_spec(world, STAY)
    monkeypatch.setattr(sandbox, "_PATH", str(world.folder))
    with pytest.raises(MissingTool) as caught:
        await world.driver.launch(spec)
    assert "apt-get install qemu-system-x86" in caught.value.hint
    probe = await world.driver.probe()
    assert (probe.usable, probe.accelerator) == (False, "none")
    assert "apt-get install qemu-system-x86" in probe.reason


async def test_vmm_killed_during_launch_fails_and_leaves_nothing(
    world: QemuWorld,
) -> None:
    for delay_s in (0.0, 0.02, 0.05):
        spec = await script_spec(world, STAY)
        launching = asyncio.create_task(world.driver.launch(spec))
        await until(world.pids, every_s=0.001)
        await asyncio.sleep(delay_s)
        for pid in world.pids():
            os.kill(pid, signal.SIGKILL)
        try:
            vmm = await launching
        except VmmFailed as error:
            assert "did not start" in error.message  # noqa: PT017
        else:
            await vmm.wait()
        assert leftover_files(spec.folder) == set()
        assert world.pids() == []


async def test_cancelled_launch_leaves_nothing(world: QemuWorld) -> None:
    for delay_s in (0.0, 0.005, 0.02, 0.04, 0.06, 0.1):
        spec = await script_spec(world, STAY)
        launching = asyncio.create_task(world.driver.launch(spec))
        await asyncio.sleep(delay_s)
        launching.cancel()
        (ended,) = await asyncio.gather(launching, return_exceptions=True)
        if not isinstance(ended, BaseException):
            await ended.kill()
        assert leftover_files(spec.folder) == set()
        assert world.pids() == []


async def test_probe_boots_guest_once_and_caches_result(tmp_path: Path) -> None:
    def driver(boot: BootFiles) -> QemuDriver:
        return QemuDriver(
            machines_dir=tmp_path, cache_dir=tmp_path / "cache", boot_files=lambda: boot
        )

    probe = await driver(boot_files()).probe()
    assert probe.usable
    assert probe.accelerator in {"kvm", "tcg"}
    assert "guest ran under KVM" in probe.reason or "software emulation" in probe.reason
    [remembered] = (tmp_path / "cache").iterdir()
    written = remembered.stat()
    assert await driver(boot_files()).probe() == probe
    assert remembered.stat().st_ino == written.st_ino, "the probe ran again"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["probe.json"]

    broken = tmp_path / "broken-kernel"
    broken.write_bytes(b"\x7fELF" + bytes(5000))
    refused = await driver(BootFiles(broken, boot_files().initramfs)).probe()
    assert (refused.usable, refused.accelerator) == (False, "none")
    assert refused.reason.isprintable()

    def missing() -> BootFiles:
        raise MissingImage("there is no kernel", hint="build it")

    none = QemuDriver(machines_dir=tmp_path, cache_dir=tmp_path, boot_files=missing)
    assert (await none.probe()).reason == "there is no kernel. build it"


async def test_driver_errors_are_translated(world: QemuWorld) -> None:
    spec = await script_spec(world, STAY)
    with pytest.raises(PolydevError):
        await world.driver.launch(dataclasses.replace(spec, folder=spec.folder / "none"))
    with pytest.raises(PolydevError):
        await world.driver.launch(dataclasses.replace(spec, netns="pdt-none"))
    assert world.pids() == []
