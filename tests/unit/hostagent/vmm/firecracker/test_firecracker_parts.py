"""Parts of the Firecracker driver that need no process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.firecracker import binaries, configuration, limits, snapshot, vsock
from polydev.hostagent.vmm.firecracker.api import Api
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.jail import jail, jailer
from polydev.hostagent.vmm.firecracker.limits import RateLimits
from polydev.hostagent.vmm.firecracker.snapshot_compat import fingerprint
from polydev.shared.errors import ChannelLost, MissingTool, SnapshotUnusable, VmmFailed
from polydev.testing.fake_firecracker import install

MIB = 1024 * 1024
VM_ID = "vm-00000000-0000-4000-8000-000000000001"
PROGRAMS = Binaries(Path("/usr/bin/firecracker"), Path("/usr/bin/jailer"))


def launch_spec(folder: Path, **changes: Any) -> LaunchSpec:
    for name in ("kernel", "initramfs", "root.img", "disk.img", "config.tar"):
        (folder / name).write_bytes(b"\x7fELF")
    values: dict[str, Any] = {
        "vm_id": VM_ID, "folder": folder, "kernel": folder / "kernel",
        "initramfs": folder / "initramfs", "root_image": folder / "root.img",
        "disk": folder / "disk.img", "config_drive": folder / "config.tar", "memory_mib": 8,
        "vcpus": 2, "netns": "polydev", "tap": "tap5", "mac": "02:01:c0:a8:64:05",
        "channel_mac": "", "channel_port": 0, "uid": 64700, "ready_marker": "READY",
    }  # fmt: skip
    return LaunchSpec(**{**values, **changes})


# The jailer's arguments


def jail_config(**changes: Any) -> jailer.JailConfig:
    values: dict[str, Any] = {
        "id": VM_ID, "base": Path("/m/jail"), "uid": 64700, "parent_cgroup": "polydev",
        "netns": "polydev", "memory_mib": 512, "vcpus": 2, "largest_file_bytes": 4096 * MIB,
    }  # fmt: skip
    return jailer.JailConfig(**{**values, **changes})


def test_jailer_arguments_hold_all_limits() -> None:
    assert jailer.arguments(jail_config(), PROGRAMS) == [
        "/usr/bin/jailer", "--id", VM_ID, "--exec-file", "/usr/bin/firecracker",
        "--uid", "64700", "--gid", "64700", "--chroot-base-dir", "/m/jail",
        "--cgroup-version", "2", "--parent-cgroup", "polydev",
        "--cgroup", f"memory.max={(512 + 4 + 96) * MIB}", "--cgroup", "cpu.max=225000 100000",
        "--cgroup", "pids.max=18", "--netns", "/run/netns/polydev",
        "--resource-limit", f"fsize={4096 * MIB}", "--resource-limit", "no-file=256",
        "--", "--api-sock", "/api.sock",
    ]  # fmt: skip
    assert jailer.root_of(jail_config(), PROGRAMS) == Path(f"/m/jail/firecracker/{VM_ID}/root")


def test_probe_needs_no_network() -> None:
    assert "--netns" not in jailer.arguments(jail_config(netns=None), PROGRAMS)


def test_socket_paths_are_short() -> None:
    for name in (jailer.API_SOCKET, vsock.SOCKET):
        assert len(f"/{name}_1234567890".encode()) <= 107


def test_unlimited_rate_has_no_bucket() -> None:
    assert limits.disk_buckets(RateLimits(0, 0, 0)).body() is None
    assert limits.disk_buckets(RateLimits(2, 0, 0)).body() == {
        "bandwidth": {"size": 2 * MIB, "one_time_burst": 2 * MIB, "refill_time": 1000}
    }


# Binaries


def test_missing_binaries_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="`firecracker`") as missing:
        Binaries.find(tmp_path / "firecracker", tmp_path / "jailer")
    assert "POLYDEV_FIRECRACKER" in missing.value.hint


def fake_binaries(folder: Path, prints: str) -> Binaries:
    path = folder / "firecracker"
    path.write_text(f"#!/bin/sh\nprintf '%s' '{prints}'\n")
    path.chmod(0o755)
    return Binaries(path, path)


@pytest.mark.parametrize("version", ["1.13.1", "1.14.0", "2.0.3"])
async def test_version_is_parsed(tmp_path: Path, version: str) -> None:
    requests = f"Firecracker v{version}\n\nsomething more"
    assert await binaries.read_version(fake_binaries(tmp_path, requests)) == version


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ("Firecracker v1.13.0", "1.13.0 is too old: Polydev needs 1.13.1"),
        ("Firecracker v0.99.99", "too old"),
        ("hello", "reports no version: hello"),
        ("", "no output"),
    ],
)
async def test_unsupported_version_is_refused(tmp_path: Path, requests: str, message: str) -> None:
    with pytest.raises(VmmFailed, match=message):
        await binaries.read_version(fake_binaries(tmp_path, requests))


async def test_fake_reports_its_version(tmp_path: Path) -> None:
    assert await binaries.read_version(install(tmp_path, version="1.15.2")) == "1.15.2"


# Order of the configuration


async def test_machine_is_configured_in_the_documented_order(tmp_path: Path) -> None:
    requests: list[tuple[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append((request.url.path, json.loads(request.content)))
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    spec = launch_spec(tmp_path)
    await configuration.machine(Api(httpx.MockTransport(answer)), spec, RateLimits())
    assert [path for path, _ in requests] == [
        "/logger", "/metrics", "/machine-config", "/boot-source",
        "/drives/root", "/drives/disk", "/drives/config",
        "/network-interfaces/lan", "/vsock", "/entropy", "/balloon",
    ]  # fmt: skip
    bodies = dict(requests)
    drives = [bodies[f"/drives/{name}"] for name in ("root", "disk", "config")]
    assert [drive["is_read_only"] for drive in drives] == [True, False, True]
    assert not any(drive["is_root_device"] for drive in drives), "there is an initramfs"
    assert all("rate_limiter" in drive for drive in drives)
    shown = {f"/{file.name}" for file in configuration.machine_files(spec)}
    assert {drive["path_on_host"] for drive in drives} <= shown
    assert bodies["/boot-source"]["kernel_image_path"] in shown
    assert bodies["/balloon"]["deflate_on_oom"] is True


def test_only_disk_and_pipes_are_writable(tmp_path: Path) -> None:
    files = configuration.machine_files(launch_spec(tmp_path))
    assert {file.name for file in files if file.writable} == {"disk", "errors", "metrics"}


@pytest.mark.parametrize("change", ["memory_mib", "vcpus"])
def test_size_changes_the_fingerprint(tmp_path: Path, change: str) -> None:
    spec = launch_spec(tmp_path)
    one = fingerprint(spec, "1.13.1")
    changes: dict[str, Any] = {change: 4}
    assert fingerprint(dataclasses.replace(spec, **changes), "1.13.1") != one
    assert fingerprint(dataclasses.replace(spec, tap="tap9", vm_id="vm-2"), "1.13.1") == one


def test_version_and_kernel_change_the_fingerprint(tmp_path: Path) -> None:
    spec = launch_spec(tmp_path)
    one = fingerprint(spec, "1.13.1")
    assert fingerprint(spec, "1.13.2") != one
    (tmp_path / "kernel").write_bytes(b"\x7fELF, another")
    assert fingerprint(spec, "1.13.1") != one


# Files in a jail


@pytest.fixture
def root(tmp_path: Path) -> Any:
    descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_symlink_in_a_jail_is_not_followed(root: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(elsewhere))
        (tmp_path / "api.sock").symlink_to(elsewhere)
        with pytest.raises(VmmFailed, match="not the VMM's socket"):
            jail.open_socket(root, "api.sock", os.getuid())
    (tmp_path / "secret").write_bytes(b"the host's")
    (tmp_path / "memory").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        jail.open_file(root, "memory")
    with pytest.raises(FileExistsError):
        jail.create_file(root, "memory", os.getuid())


def test_only_the_vmms_own_socket_is_opened(root: int, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        os.close(jail.open_socket(root, "api.sock", os.getuid()))
        with pytest.raises(VmmFailed):
            jail.open_socket(root, "api.sock", os.getuid() + 1)
    (tmp_path / "file").touch()
    with pytest.raises(VmmFailed):
        jail.open_socket(root, "file", os.getuid())


def test_fifo_in_place_of_a_file_does_not_block(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "memory")
    with pytest.raises(VmmFailed, match="not a regular file"):
        jail.open_file(root, "memory")


# vsock


async def fake_vsock(folder: Path, answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 22\n"
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, folder / vsock.SOCKET)


async def test_early_output_of_the_guest_is_not_lost(root: int, tmp_path: Path) -> None:
    async with await fake_vsock(tmp_path, b"OK 1073741824\nSSH-2.0-x\r\n"):
        connected = await vsock.connect(root, os.getuid(), 22)
        with connected:
            requests = await asyncio.get_running_loop().sock_recv(connected, 100)
    assert requests == b"SSH-2.0-x\r\n"


@pytest.mark.parametrize("answer", [b"", b"NO\n", b"O" * 1000, b"OK 12"])
async def test_refused_vsock_connection_is_channel_lost(
    root: int, tmp_path: Path, answer: bytes
) -> None:
    async with await fake_vsock(tmp_path, answer):
        with pytest.raises(ChannelLost):
            await vsock.connect(root, os.getuid(), 22)


async def test_missing_vsock_socket_is_channel_lost(root: int) -> None:
    with pytest.raises(ChannelLost):
        await vsock.connect(root, os.getuid(), 22)


# Snapshots


class MemorySnapshot:
    """An in-memory snapshot, read in pieces of odd sizes."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    async def write(self, content: bytes) -> None:
        self.content += content

    async def read(self) -> bytes:
        piece, self.content = self.content[:100_003], self.content[100_003:]
        return piece


def memory_file(size: int, *pieces: tuple[int, bytes]) -> int:
    descriptor = os.memfd_create("memory")
    os.ftruncate(descriptor, size)
    for offset, content in pieces:
        os.pwrite(descriptor, content, offset)
    return descriptor


async def test_snapshot_round_trip_skips_holes() -> None:
    size = 64 * MIB
    state = memory_file(3, (0, b"abc"))
    pieces = [(0, b"first"), (MIB - 3, b"across"), (40 * MIB, bytes(20_000)), (size - 1, b"z")]
    memory = memory_file(size, *pieces)
    saved = MemorySnapshot()
    await snapshot.write(saved, state, memory, size)
    assert len(saved.content) < 200_000
    state_again, memory_again = memory_file(0), memory_file(0)
    await snapshot.read(saved, state_again, memory_again, size)
    assert os.pread(state_again, 10, 0) == b"abc"
    assert os.pread(memory_again, size + 1, 0) == os.pread(memory, size, 0)
    assert saved.content == b""


async def test_memory_without_zeros_round_trips() -> None:
    size = 3 * MIB
    memory = memory_file(size, (0, b"\xff" * size))
    saved = MemorySnapshot()
    await snapshot.write(saved, memory_file(1, (0, b"s")), memory, size)
    again = memory_file(0)
    await snapshot.read(saved, memory_file(0), again, size)
    assert os.pread(again, size, 0) == b"\xff" * size


@pytest.mark.parametrize("state_bytes", [0, 33 * MIB])
async def test_invalid_snapshot_files_are_refused(state_bytes: int) -> None:
    saved = MemorySnapshot()
    with pytest.raises(VmmFailed):
        await snapshot.write(saved, memory_file(state_bytes), memory_file(MIB), MIB)
    with pytest.raises(VmmFailed):
        await snapshot.write(saved, memory_file(1, (0, b"s")), memory_file(MIB), 2 * MIB)
    assert saved.content == b""


def framed(*extents: tuple[int, int], size: int = MIB) -> bytes:
    head = b"POLYDEV-FC 1\n" + struct.pack("<Q", 1) + b"s" + struct.pack("<Q", size)
    return head + b"".join(
        struct.pack("<QQ", offset, length) + bytes(min(length, MIB)) for offset, length in extents
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no snapshot at all",
        framed(),
        framed((0, 16384)),
        framed((0, 16384), (0, 16384), (MIB, 0)),
        framed((MIB - 1, 2), (MIB, 0)),
        framed((2 * MIB, 1), (MIB, 0)),
        framed((0, 1 << 40)),
        framed((MIB, 0), size=2 * MIB),
        b"POLYDEV-FC 1\n" + struct.pack("<Q", 1 << 50),
    ],
)
async def test_damaged_snapshot_is_unusable(content: bytes) -> None:
    with pytest.raises(SnapshotUnusable):
        await snapshot.read(MemorySnapshot(content), memory_file(0), memory_file(0), MIB)
