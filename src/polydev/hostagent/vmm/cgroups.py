"""A cgroup for each machine's VMM, which limits its use of the host.

The kernel kills only the machine that exceeds its memory, before the host runs short. Drivers put
their VMMs in (Firecracker's jailer does it itself, below the same folder) and doctor reports
whether cgroups are in use. Without cgroup v2, or without permission, nothing happens here:
`system/sandbox.py` raises the VMMs' OOM score in any case. Blocking. Source: the kernel's
Documentation/admin-guide/cgroup-v2.rst.
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
    """Limits of one VMM."""

    memory_bytes: int
    """The guest's memory plus the VMM's own needs."""
    pids: int
    cpu_weight: int
    """Relative to other machines when CPU is scarce; 100 is the default."""


class Cgroups:
    """The cgroups of one Polydev's machines: `<mount>/<name>/<vm_id>`.

    The name may be a path to a delegated group (`polydev host setup`).
    """

    def __init__(self, root: Path | None, reason: str) -> None:
        self.root = root
        """None if this host has no usable cgroups."""
        self.reason = reason
        """Location, or why there is none, for `polydev doctor`."""

    @classmethod
    def create(cls, name: str, mounts: Path = _MOUNTS) -> Cgroups:
        """Create the parent group, if permitted, and remove groups of ended machines."""
        mount, reason = _mount(mounts)
        if mount is None:
            return cls(None, reason)
        root = mount / name
        try:
            root.mkdir(exist_ok=True)
            _enable(mount)
            _enable(root)
        except OSError as error:
            with suppress(OSError):
                root.rmdir()
            return cls(None, f"no cgroup can be created in {mount}: {error.strerror}")
        found = cls(root, f"by its cgroup in {root}")
        found.remove_empty()
        return found

    @classmethod
    def inspect(cls, name: str, mounts: Path = _MOUNTS) -> Cgroups:
        """Return the parent group without creating or removing anything."""
        mount, reason = _mount(mounts)
        if mount is None:
            return cls(None, reason)
        root = mount / name
        if not set(NEEDED) <= set(_read_tokens(root / "cgroup.subtree_control")):
            return cls(None, f"there is no parent cgroup for machines at {root}")
        return cls(root, f"by its cgroup in {root}")

    def add(self, vm_id: str, pid: int, bounds: CgroupLimits) -> None:
        """Put a process into the machine's group; log a failure and continue."""
        if self.root is None:
            return
        group = self.root / vm_id
        try:
            group.mkdir(exist_ok=True)
            (group / "memory.max").write_text(str(bounds.memory_bytes))
            (group / "memory.oom.group").write_text("1")
            (group / "pids.max").write_text(str(bounds.pids))
            for name, value in (
                # Guest memory holds credentials and must not reach a disk.
                ("memory.swap.max", "0"),
                ("cpu.weight", str(bounds.cpu_weight)),
            ):
                if (group / name).exists():
                    (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("%s runs without a cgroup: %s", vm_id, error)

    def release(self, vm_id: str) -> None:
        """Remove the group of a machine whose process has ended. Idempotent."""
        if self.root is not None:
            _remove(self.root / vm_id)

    def remove_empty(self) -> None:
        """Remove groups without processes. Only while no machine is being started."""
        if self.root is not None:
            for group in self.root.glob("vm-*"):
                if not _read_tokens(group / "cgroup.procs"):
                    _remove(group)

    def remove(self) -> None:
        """Remove everything once the last machine is gone."""
        self.remove_empty()
        if self.root is not None:
            with suppress(OSError):
                self.root.rmdir()


def group_path(pid: int, mounts: Path = _MOUNTS) -> Path | None:
    """Return the path of the machine's group that a process is in, or None.

    A group keeps its original name after a rename. Source: cgroups(7), /proc/[pid]/cgroup.
    """
    mount, _ = _mount(mounts)
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            path = line.removeprefix("0::/")
            if mount is not None and path != line and Path(path).name.startswith("vm-"):
                return mount / path
    return None


def group_name(pid: int) -> str:
    """Return the group's name; empty if there is none."""
    folder = group_path(pid)
    return "" if folder is None else folder.name


def _mount(mounts: Path) -> tuple[Path | None, str]:
    """Find a cgroup v2 mount that can limit memory.

    Otherwise return the reason why there is none.
    """
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            missing = set(NEEDED) - set(_read_tokens(Path(where) / "cgroup.controllers"))
            if not missing:
                return Path(where), ""
            names = " and ".join(sorted(missing))
            return None, f"{where} has no {names} controller: cgroup v1 uses it"
    return None, "this host has no cgroup v2"


def _enable(folder: Path) -> None:
    """Enable controllers for the groups in a folder. Raises: OSError."""
    there = set(_read_tokens(folder / "cgroup.controllers"))
    on = set(_read_tokens(folder / "cgroup.subtree_control"))
    for name in _WANTED:
        if name in there - on:
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _read_tokens(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _remove(group: Path) -> None:
    """Remove a group; the kernel releases its last thread a moment after the exit."""
    for _ in range(_TRIES):
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror
        time.sleep(_PAUSE_S)
    log.warning("cannot remove cgroup %s: %s", group, reason)
