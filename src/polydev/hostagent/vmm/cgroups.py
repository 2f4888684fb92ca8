"""A control group of its own for each machine's VMM: what it may take of its host, and no more.

A machine that takes more than it was given is ended by the kernel, alone, before the host is short.
Drivers put their VMMs in (Firecracker's jailer does so itself, below the same folder), doctor tells
whether it is so. On hosts without control groups of version 2, or without the right to make any,
nothing happens here: `confine.py` has the kernel take VMMs first in any case. Blocking.
Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("polydev.hostagent")

NEEDED = ("memory", "pids")
_WANTED = (*NEEDED, "cpu")
_TRIES = 50
_PAUSE_S = 0.02
_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What a VMM may have."""

    memory_bytes: int
    """Its guest's memory, and what it needs itself."""
    pids: int
    cpu_weight: int
    """Against other machines, where there is not enough for all; 100 is usual."""


class Cgroups:
    """The control groups of one Polydev's machines: `<mount>/<name>/<vm_id>`.

    The name may be a path, to a group that was delegated (`polydev host setup`)."""

    def __init__(self, root: Path | None, reason: str) -> None:
        self.root = root
        """None: there are none here."""
        self.reason = reason
        """Why not, or where they are, in words for `polydev doctor`."""

    @classmethod
    def create(cls, name: str, mounts: Path = _MOUNTS) -> Cgroups:
        """Make the folder that machines' groups are made in, if this host lets us; remove what
        machines left in it that were ended while nobody looked."""
        mount, why_not = _mount(mounts)
        if mount is None:
            return cls(None, why_not)
        root = mount / name
        try:
            root.mkdir(exist_ok=True)
            _enable(mount)
            _enable(root)
        except OSError as error:
            with suppress(OSError):
                root.rmdir()
            return cls(None, f"no control group can be made in {mount}: {error.strerror}")
        found = cls(root, f"by its control group in {root}")
        found.remove_empty()
        return found

    @classmethod
    def inspect(cls, name: str, mounts: Path = _MOUNTS) -> Cgroups:
        """The same, without making or removing anything."""
        mount, why_not = _mount(mounts)
        if mount is None:
            return cls(None, why_not)
        root = mount / name
        if not set(NEEDED) <= set(_words(root / "cgroup.subtree_control")):
            return cls(None, f"there is no folder for machines' control groups at {root}")
        return cls(root, f"by its control group in {root}")

    def add(self, vm_id: str, pid: int, bounds: CgroupLimits) -> None:
        """Put a process into the machine's group. When that fails it is told, and the machine goes
        on without."""
        if self.root is None:
            return
        group = self.root / vm_id
        try:
            group.mkdir(exist_ok=True)
            (group / "memory.max").write_text(str(bounds.memory_bytes))
            (group / "memory.oom.group").write_text("1")
            (group / "pids.max").write_text(str(bounds.pids))
            for name, value in (
                # What a guest has in its memory, credentials among it, is not for a disk.
                ("memory.swap.max", "0"),
                ("cpu.weight", str(bounds.cpu_weight)),
            ):
                if (group / name).exists():
                    (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("%s runs without a control group: %s", vm_id, error)

    def release(self, vm_id: str) -> None:
        """Remove a machine's group, whose process has ended. Nothing happens if there is none."""
        if self.root is not None:
            _remove(self.root / vm_id)

    def remove_empty(self) -> None:
        """Remove groups without processes. Only while nothing is being started."""
        if self.root is not None:
            for group in self.root.glob("vm-*"):
                if not _words(group / "cgroup.procs"):
                    _remove(group)

    def remove(self) -> None:
        """Remove all of it, when the last machine is gone."""
        self.remove_empty()
        if self.root is not None:
            with suppress(OSError):
                self.root.rmdir()


def group_path(pid: int, mounts: Path = _MOUNTS) -> Path | None:
    """The machine's group that a process is in; None if it is in none.

    A group keeps the name that it was made with. Source: cgroups(7), /proc/[pid]/cgroup.
    """
    mount, _ = _mount(mounts)
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            path = line.removeprefix("0::/")
            if mount is not None and path != line and Path(path).name.startswith("vm-"):
                return mount / path
    return None


def group_name(pid: int) -> str:
    """Its name; empty if it is in none."""
    folder = group_path(pid)
    return "" if folder is None else folder.name


def _mount(mounts: Path) -> tuple[Path | None, str]:
    """Where control groups of version 2 are, and can bound memory; or why not."""
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            missing = set(NEEDED) - set(_words(Path(where) / "cgroup.controllers"))
            if not missing:
                return Path(where), ""
            words = " and ".join(sorted(missing))
            return None, f"{where} has no {words} controller; version 1 of control groups has it"
    return None, "this host has no control groups of version 2"


def _enable(folder: Path) -> None:
    """Give the groups in a folder their controllers. Raises: OSError."""
    there = set(_words(folder / "cgroup.controllers"))
    on = set(_words(folder / "cgroup.subtree_control"))
    for name in _WANTED:
        if name in there - on:
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _remove(group: Path) -> None:
    """The kernel lets go of a process' last thread a moment after it has ended."""
    for _ in range(_TRIES):
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            why_not = error.strerror
        time.sleep(_PAUSE_S)
    log.warning("the control group %s is not removed: %s", group, why_not)
