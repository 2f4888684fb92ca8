"""The fake Firecracker follows the real one's documentation: order, states, opened files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from polydev.testing.fake_firecracker import install
from polydev.testing.fake_firecracker.machine import FakeMachine, Fault

ACTION = "createSyncAction"
START = {"action_type": "InstanceStart"}


@pytest.fixture
async def machine() -> FakeMachine:
    return FakeMachine("vm-1", "1.13.1")


async def refused(machine: FakeMachine, operation: str, body: dict[str, Any]) -> str:
    with pytest.raises(Fault) as fault:
        await machine.perform(operation, body)
    return str(fault.value)


async def with_kernel(machine: FakeMachine, folder: Path, content: bytes = b"\x7fELF") -> None:
    (folder / "kernel").write_bytes(content)
    await machine.perform("putGuestBootSource", {"kernel_image_path": str(folder / "kernel")})


async def state(machine: FakeMachine) -> str:
    answer = await machine.perform("describeInstance", {})
    assert answer is not None
    return str(answer["state"])


async def test_starts_once_and_only_with_a_kernel(machine: FakeMachine, tmp_path: Path) -> None:
    assert await state(machine) == "Not started"
    assert "kernel" in await refused(machine, ACTION, START)
    await with_kernel(machine, tmp_path, b"MZ")
    assert "kernel" in await refused(machine, ACTION, START)
    await with_kernel(machine, tmp_path)
    await machine.perform(ACTION, START)
    assert await state(machine) == "Running"
    assert "after starting" in await refused(machine, ACTION, START)
    assert "after starting" in await refused(machine, "putEntropyDevice", {})
    assert await machine.ended() == 0, "a guest without drives shuts down"


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("patchVm", {"state": "Paused"}),
        ("createSnapshot", {"snapshot_path": "/s", "mem_file_path": "/m"}),
        ("patchBalloon", {"amount_mib": 1}),
        ("createSyncAction", {"action_type": "SendCtrlAltDel"}),
    ],
)
async def test_guest_requests_need_a_running_guest(
    machine: FakeMachine, operation: str, body: dict[str, Any]
) -> None:
    assert "before starting" in await refused(machine, operation, body)


async def test_only_paused_guests_are_saved(machine: FakeMachine, tmp_path: Path) -> None:
    await with_kernel(machine, tmp_path)
    await machine.perform(ACTION, START)
    paths = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    assert "running" in await refused(machine, "createSnapshot", paths)
    await machine.perform("patchVm", {"state": "Paused"})
    assert await state(machine) == "Paused"
    await machine.perform("patchVm", {"state": "Resumed"})
    assert await state(machine) == "Running"


async def test_snapshot_loads_first_and_failure_exits(machine: FakeMachine, tmp_path: Path) -> None:
    memory = {"backend_type": "File", "backend_path": str(tmp_path / "m")}
    load = {"snapshot_path": str(tmp_path / "s"), "mem_backend": memory}
    await with_kernel(machine, tmp_path)
    (tmp_path / "disk").touch()
    disk = {"drive_id": "d", "path_on_host": str(tmp_path / "disk"), "is_read_only": True}
    await machine.perform("putGuestDriveByID", disk)
    assert "not allowed" in await refused(machine, "loadSnapshot", load)
    fresh = FakeMachine("vm-2", "1.13.1")
    assert "Load snapshot error" in await refused(fresh, "loadSnapshot", load)
    assert await fresh.ended() == 1


async def test_missing_files_are_refused(machine: FakeMachine, tmp_path: Path) -> None:
    drive = {"drive_id": "d", "path_on_host": str(tmp_path / "no"), "is_read_only": True}
    assert "No such file" in await refused(machine, "putGuestDriveByID", drive)
    assert "No such file" in await refused(
        machine, "putGuestBootSource", {"kernel_image_path": str(tmp_path / "no")}
    )
    (tmp_path / "vsock.sock").touch()
    vsock = {"guest_cid": 3, "uds_path": str(tmp_path / "vsock.sock")}
    assert "Address in use" in await refused(machine, "putGuestVsock", vsock)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--id", "vm/1"), "not an id"),
        (("--cgroup-version", "1"), "invalid choice"),
        (("--unknown", "1"), "unrecognized"),
        (("--exec-file", "/bin/sh"), "must hold `firecracker`"),
    ],
)
def test_jailer_takes_the_real_arguments(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    programs = install(tmp_path)
    asked = {
        "--id": "vm-1", "--exec-file": str(programs.firecracker), "--uid": "64700",
        "--gid": "64700", "--chroot-base-dir": str(tmp_path), "--cgroup-version": "2",
        "--parent-cgroup": "pdt-nothing", change[0]: change[1],
    }  # fmt: skip
    arguments = [word for pair in asked.items() for word in pair]
    ended = subprocess.run(
        [programs.jailer, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert message in ended.stderr
