"""Hosts that cannot limit machines' VMMs (tests/vm/test_memory.py limits real ones)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from polydev.hostagent.vmm.cgroups import CgroupLimits, Cgroups, group_path
from polydev.hostagent.warm_pool.cpu_priority import Priority


def mounted(folder: Path, controllers: str) -> Path:
    """Create a mount table with one cgroup v2 hierarchy and these controllers."""
    there = folder / "unified"
    there.mkdir()
    (there / "cgroup.controllers").write_text(controllers)
    table = folder / "mounts"
    table.write_text(
        f"proc /proc proc rw 0 0\ncgroup /c cgroup rw,memory 0 0\ncgroup2 {there} cgroup2 rw 0 0\n"
    )
    return table


def test_cgroups_v1_host_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
    for found in (
        Cgroups.create("one", tmp_path / "mounts"),
        Cgroups.inspect("one", tmp_path / "mounts"),
    ):
        assert found.root is None
        assert "no cgroup v2" in found.reason
        found.add("vm-1", 1, CgroupLimits(1, 1, 1))
        found.release("vm-1")
        found.remove()


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    found = Cgroups.create("one", mounted(tmp_path, "cpuset pids"))
    assert found.root is None
    assert f"{tmp_path}/unified has no memory controller" in found.reason
    assert [path.name for path in (tmp_path / "unified").iterdir()] == ["cgroup.controllers"]


def test_read_only_hierarchy_is_reported(tmp_path: Path) -> None:
    table = mounted(tmp_path, "memory pids")
    (tmp_path / "unified" / "one").write_text("in the way")
    found = Cgroups.create("one", table)
    assert found.root is None
    assert "no cgroup can be created in" in found.reason
    assert "File exists" in found.reason


def test_inspect_creates_nothing(tmp_path: Path) -> None:
    found = Cgroups.inspect("one", mounted(tmp_path, "cpu memory pids"))
    assert found.root is None
    assert "no parent cgroup for machines" in found.reason
    assert not (tmp_path / "unified" / "one").exists()


def test_failure_to_create_a_group_is_logged_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Cgroups(tmp_path / "gone" / "away", "").add("vm-1", 1, CgroupLimits(1, 1, 1))
    assert "vm-1 runs without a cgroup" in caplog.text


def test_only_machine_groups_are_found(tmp_path: Path) -> None:
    assert group_path(os.getpid(), mounted(tmp_path, "cpu memory pids")) is None
    assert group_path(2**22 + 1, tmp_path / "mounts") is None


async def test_nice_value_is_lowered_and_restored() -> None:
    """Without a cgroup of its own."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        priority = Priority()
        priority.lower(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
        priority.restore()
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 0
    finally:
        process.kill()
        await process.wait()


def test_group_priority_is_lowered_by_its_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.weight").write_text("200\n")
    monkeypatch.setattr("polydev.hostagent.warm_pool.cpu_priority.group_path", lambda _: tmp_path)
    priority = Priority()
    priority.lower(os.getppid())
    assert (tmp_path / "cpu.weight").read_text() == "1"
    priority.restore()
    assert (tmp_path / "cpu.weight").read_text() == "200\n"
