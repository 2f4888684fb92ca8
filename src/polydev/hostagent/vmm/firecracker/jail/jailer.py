"""The jailer's argument list for one VMM. Pure: it opens and starts nothing.

The jailer makes the devices in the jail, puts itself into its cgroup and the network namespace,
makes the jail its root, becomes the VMM's user and replaces itself with Firecracker: the process
that was started is the VMM. (`--new-pid-ns` would fork; decision 0041 says why it is not used.)
Source: docs/jailer.md of Firecracker 1.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.system.namespaces import path_of
from polydev.hostagent.vmm.firecracker import limits
from polydev.hostagent.vmm.firecracker.binaries import Programs

API_SOCKET = "api.sock"
"""In the jail's root."""
_NO_FILE = 256


@dataclass(frozen=True, slots=True)
class Cell:
    """Whom to jail, and where: `id` names the jail and the cgroup."""

    id: str
    base: Path
    """The jail is `<base>/<name of the program>/<id>/root`."""
    uid: int
    parent_cgroup: str
    netns: str | None
    memory_mib: int
    vcpus: int
    largest_file_bytes: int
    """A VMM that a guest has taken over must not fill the host."""


def root_of(cell: Cell, programs: Programs) -> Path:
    """The folder that becomes the VMM's root."""
    return cell.base / programs.firecracker.name / cell.id / "root"


def arguments(cell: Cell, programs: Programs) -> list[str]:
    """The whole command."""
    network = ["--netns", str(path_of(cell.netns))] if cell.netns else []
    return [
        str(programs.jailer),
        *("--id", cell.id),
        *("--exec-file", str(programs.firecracker)),
        *("--uid", str(cell.uid), "--gid", str(cell.uid)),
        *("--chroot-base-dir", str(cell.base)),
        *("--cgroup-version", "2", "--parent-cgroup", cell.parent_cgroup),
        *("--cgroup", f"memory.max={limits.memory_bytes(cell.memory_mib)}"),
        *("--cgroup", f"cpu.max={limits.cpu_max(cell.vcpus)}"),
        *("--cgroup", f"pids.max={limits.pids_max(cell.vcpus)}"),
        *network,
        *("--resource-limit", f"fsize={cell.largest_file_bytes}"),
        *("--resource-limit", f"no-file={_NO_FILE}"),
        "--",
        *("--api-sock", f"/{API_SOCKET}"),
    ]  # fmt: skip
