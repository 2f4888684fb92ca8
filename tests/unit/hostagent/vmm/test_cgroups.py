"""Where machines' VMMs cannot be bounded, and why. (tests/vm/test_memory.py bounds real ones.)"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from polydev.hostagent.vmm.cgroups import CgroupLimits, Cgroups, group_path
from polydev.hostagent.warm_pool.cpu_priority import Priority


def mounted(folder: Path, controllers: str) -> Path:
    """A table of mounts with one hierarchy of version 2, whose controllers are these."""
    there = folder / "unified"
    there.mkdir()
    (there / "cgroup.controllers").write_text(controllers)
    table = folder / "mounts"
    table.write_text(
        f"proc /proc proc rw 0 0\ncgroup /c cgroup rw,memory 0 0\ncgroup2 {there} cgroup2 rw 0 0\n"
    )
    return table


def test_a_host_without_version_2_says_so(tmp_path: Path) -> None:
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


def test_controllers_that_belong_to_version_1_are_named(tmp_path: Path) -> None:
    found = Cgroups.create("one", mounted(tmp_path, "cpuset pids"))
    assert found.root is None
    assert f"{tmp_path}/unified has no memory controller" in found.reason
    assert [path.name for path in (tmp_path / "unified").iterdir()] == ["cgroup.controllers"]


def test_a_hierarchy_that_is_not_ours_to_change_is_named(tmp_path: Path) -> None:
    table = mounted(tmp_path, "memory pids")
    (tmp_path / "unified" / "one").write_text("in the way")
    found = Cgroups.create("one", table)
    assert found.root is None
    assert "no cgroup can be created in" in found.reason
    assert "File exists" in found.reason


def test_looking_makes_nothing(tmp_path: Path) -> None:
    found = Cgroups.inspect("one", mounted(tmp_path, "cpu memory pids"))
    assert found.root is None
    assert "no parent cgroup for machines" in found.reason
    assert not (tmp_path / "unified" / "one").exists()


def test_a_group_that_cannot_be_made_is_told_and_the_machine_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Cgroups(tmp_path / "gone" / "away", "").add("vm-1", 1, CgroupLimits(1, 1, 1))
    assert "vm-1 runs without a cgroup" in caplog.text


def test_the_group_that_a_process_is_in_is_a_machines_or_none(tmp_path: Path) -> None:
    assert group_path(os.getpid(), mounted(tmp_path, "cpu memory pids")) is None
    assert group_path(2**22 + 1, tmp_path / "mounts") is None


async def test_who_gives_way_goes_along_again() -> None:
    """By its nice value, where it has no group of its own."""
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


def test_a_group_gives_way_by_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.weight").write_text("200\n")
    monkeypatch.setattr("polydev.hostagent.warm_pool.cpu_priority.group_path", lambda _: tmp_path)
    priority = Priority()
    priority.lower(os.getppid())
    assert (tmp_path / "cpu.weight").read_text() == "1"
    priority.restore()
    assert (tmp_path / "cpu.weight").read_text() == "200\n"
