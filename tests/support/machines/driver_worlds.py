"""Environments to test a VMM driver in: a network namespace, a folder, machines to launch.

One class per driver. Closing a world ends its machines and removes its namespace.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest

from polydev.hostagent.images import GoldenImage, ImageStore
from polydev.hostagent.provisioning.config_drive import MachineConfig, write_config_drive
from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import Driver, LaunchSpec
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.driver import FirecrackerDriver
from polydev.hostagent.vmm.firecracker.jail import cgroup
from polydev.hostagent.vmm.firecracker.limits import RateLimits
from polydev.hostagent.vmm.qemu import QemuDriver
from polydev.shared.domain import MachineKind, VmId, new_vm_id
from polydev.shared.errors import MissingTool
from polydev.testing.fake_firecracker import install
from polydev.testing.simulated_vmm import SimulatedDriver

UID = 64700
CHANNEL_MAC = "02:02:c0:a8:64:05"
IMAGES = Path(os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images"))

STAY = "echo {marker}\nwhile true; do sleep 1; done\n"
"""A guest for `small` that only stays up."""

_PREAMBLE = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
for module in /modules/*.ko; do insmod "$module"; done
"""


class World(Protocol):
    """An environment for the driver contract tests."""

    driver: Driver

    async def spec(self) -> LaunchSpec:
        """Prepare a new machine for launch."""


class QemuWorld:
    """Emulated QEMU machines in a namespace with only their TAPs."""

    def __init__(self, folder: Path, netns: str) -> None:
        self.folder = folder
        self.netns = netns
        self.machines_dir = folder / "machines"
        self.machines_dir.mkdir(mode=0o700)
        self.driver = QemuDriver(
            machines_dir=self.machines_dir,
            cache_dir=folder / "cache",
            boot_files=boot_files,
            accelerator="tcg",
        )
        self._count = 0

    async def spec(
        self, init: str | None = None, *, disk_mib: int = 256, has_channel_nic: bool = True
    ) -> LaunchSpec:
        """A CLI machine; with `init`, a guest that runs this instead of a golden image.

        `init` is a busybox shell script; it gets only the machine's drives. Without a channel NIC,
        the guest's config says that its channel is vsock.
        """
        self._count += 1
        vm_id = new_vm_id()
        folder = self.machines_dir / vm_id
        folder.mkdir(mode=0o711)
        boot = boot_files()
        config = await _write_config(folder, vm_id, UID, has_channel_nic=has_channel_nic)
        await make_disk(folder / "disk.img", disk_mib, uid=UID, cache_dir=self.folder / "cache")
        return LaunchSpec(
            vm_id=vm_id,
            folder=folder,
            kernel=boot.kernel,
            initramfs=self._initramfs(folder, init) if init else boot.initramfs,
            root_image=self._blank() if init else newest_image("cli").root_image,
            disk=folder / "disk.img",
            config_drive=folder / "config.tar",
            memory_mib=256 if init else 512,
            vcpus=1,
            netns=self.netns,
            tap=self._tap(),
            mac=config.mac,
            channel_mac=CHANNEL_MAC,
            channel_port=22000 + self._count,
            uid=UID,
            ready_marker=f"POLYDEV-READY {config.ready_nonce}",
        )

    def pids(self) -> list[int]:
        """The VMMs of this world, found in /proc."""
        return list(self.driver.find_orphans([]))

    def _tap(self) -> str:
        name = f"tap{self._count}"
        _ip("-n", self.netns, "tuntap", "add", "dev", name, "mode", "tap", "user", str(UID))
        _ip("-n", self.netns, "link", "set", name, "up")
        return name

    def _blank(self) -> Path:
        path = self.folder / "blank.img"
        if not path.exists():
            path.write_bytes(bytes(1 << 20))
            path.chmod(0o644)
        return path

    def _initramfs(self, folder: Path, init: str) -> Path:
        """The golden initramfs with another /init: later members replace earlier ones."""
        path = folder / "initramfs.cpio"
        golden = boot_files().initramfs.read_bytes()
        path.write_bytes(golden + _newc("init", (_PREAMBLE + init).encode()))
        path.chmod(0o644)
        return path


class FirecrackerWorld(QemuWorld):
    """Firecracker machines, real or fake, in a namespace with their TAPs."""

    driver: FirecrackerDriver  # type: ignore[assignment]

    def __init__(self, folder: Path, netns: str, binaries: Binaries) -> None:
        super().__init__(folder, netns)
        self.binaries = binaries
        self.driver = FirecrackerDriver(
            machines_dir=self.machines_dir,
            cache_dir=folder / "cache",
            boot_files=boot_files,
            binaries=lambda: binaries,
            rates=RateLimits(),
            parent_cgroup=netns,
        )

    async def spec(
        self, init: str | None = None, *, disk_mib: int = 256, has_channel_nic: bool = False
    ) -> LaunchSpec:
        return await super().spec(init, disk_mib=disk_mib, has_channel_nic=has_channel_nic)

    def remove_cgroups(self) -> None:
        """Remove the parent cgroup, which the driver leaves."""
        if mounted := cgroup.root():
            self.driver.find_orphans([])
            with suppress(FileNotFoundError):
                (mounted / self.netns).rmdir()


class SimulatedWorld:
    """Simulated machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = SimulatedDriver()

    async def spec(self) -> LaunchSpec:
        vm_id = new_vm_id()
        folder = self.folder / vm_id
        folder.mkdir(mode=0o711)
        config = await _write_config(folder, vm_id, os.getuid())
        nowhere = Path(os.devnull)
        return LaunchSpec(
            vm_id=vm_id,
            folder=folder,
            kernel=nowhere,
            initramfs=nowhere,
            root_image=nowhere,
            disk=nowhere,
            config_drive=folder / "config.tar",
            memory_mib=256,
            vcpus=1,
            netns="nowhere",
            tap="nowhere",
            mac=config.mac,
            channel_mac=CHANNEL_MAC,
            channel_port=22001,
            uid=os.getuid(),
            ready_marker=f"POLYDEV-READY {config.ready_nonce}",
        )


@asynccontextmanager
async def qemu_world(folder: Path) -> AsyncIterator[QemuWorld]:
    """A QEMU world; nothing of it remains."""
    with _namespace() as netns:
        world = QemuWorld(folder, netns)
        try:
            yield world
        finally:
            await _end_all(world)


@asynccontextmanager
async def fake_firecracker_world(folder: Path) -> AsyncIterator[FirecrackerWorld]:
    """A world with the fake Firecracker and jailer."""
    bin_dir = folder / "bin"
    bin_dir.mkdir()
    async with _firecracker_world(folder, install(bin_dir)) as world:
        yield world


@asynccontextmanager
async def firecracker_world(folder: Path) -> AsyncIterator[FirecrackerWorld]:
    """A world with the real Firecracker; skip the test, with the reason, if it cannot run."""
    try:
        binaries = Binaries.find()
    except MissingTool as error:
        pytest.skip(f"no real Firecracker here: {error.message}")
    async with _firecracker_world(folder, binaries) as world:
        probe = await world.driver.probe()
        if not probe.usable:
            pytest.skip(f"no guest runs under the real Firecracker here: {probe.reason}")
        yield world


@asynccontextmanager
async def _firecracker_world(folder: Path, binaries: Binaries) -> AsyncIterator[FirecrackerWorld]:
    with _namespace() as netns:
        world = FirecrackerWorld(folder, netns, binaries)
        try:
            yield world
        finally:
            await _end_all(world)
            world.remove_cgroups()


@contextmanager
def _namespace() -> Iterator[str]:
    netns = f"pdt-{secrets.token_hex(4)}"
    _ip("netns", "add", netns)
    try:
        _ip("-n", netns, "link", "set", "lo", "up")
        yield netns
    finally:
        _ip("netns", "del", netns)


async def _end_all(world: QemuWorld) -> None:
    for pid in world.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await until(lambda: not world.pids())


@asynccontextmanager
async def simulated_world(folder: Path) -> AsyncIterator[SimulatedWorld]:
    yield SimulatedWorld(folder)


async def script_spec(world: QemuWorld, init: str, marker: str = "MARK") -> LaunchSpec:
    """A machine that only runs a script and boots in two seconds."""
    spec = await world.spec(init.format(marker=marker))
    return dataclasses.replace(spec, ready_marker=marker)


def boot_files() -> BootFiles:
    """The kernel and initramfs of every guest. Raises: MissingImage."""
    image = newest_image("kernel")
    return BootFiles(image.kernel, image.initramfs)


def newest_image(kind: str) -> GoldenImage:
    """The newest golden image of a kind, current or not."""
    store = ImageStore(IMAGES)
    return next((image for image in store.list() if image.kind == kind), None) or store.require(
        kind
    )


async def until(claim: object, limit_s: float = 60, every_s: float = 0.02) -> None:
    """Poll until a claim about another process holds."""
    assert callable(claim)
    end_s = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < end_s, "the claim did not hold in time"
        await asyncio.sleep(every_s)


def leftover_files(folder: Path) -> set[str]:
    """Files that a VMM left in its machine's folder, except logs."""
    ours = {"config.tar", "disk.img", "keys", "initramfs.cpio"}
    ours |= {"console.log", "error.log", "metrics.log"}
    return {path.name for path in folder.iterdir()} - ours - {"simulated-root"}


async def _write_config(
    folder: Path, vm_id: VmId, uid: int, *, has_channel_nic: bool = True
) -> MachineConfig:
    keys = await make_keys(folder / "keys")
    config = MachineConfig(
        vm_id=vm_id,
        kind=MachineKind.CLI,
        hostname="machine",
        address="192.168.100.5/24",
        mac="02:01:c0:a8:64:05",
        gateway="192.168.100.1",
        dns=(),
        channel_mac=CHANNEL_MAC if has_channel_nic else None,
        ready_nonce=secrets.token_hex(8),
        clock_s=int(time.time()),
        host_key=keys.host_private,
        authorized_key=keys.client_public,
    )
    await write_config_drive(folder / "config.tar", config, uid=uid)
    return config


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _newc(name: str, content: bytes) -> bytes:
    """A newc cpio archive of one program (Linux: initramfs buffer-format.rst)."""
    return b"".join(_members([(name, 0o100755, content), ("TRAILER!!!", 0, b"")]))


def _members(members: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    for number, (name, mode, content) in enumerate(members, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
