"""The jailer's argument list for one VMM. Pure: it opens and starts nothing.

The jailer creates the devices in the jail, enters cgroup and network namespace, makes the jail its
root, switches to the VMM's user and execs Firecracker: the process that was started is the VMM.
(`--new-pid-ns` would fork; decision 0041 says why it is not used.) Source: docs/jailer.md of
Firecracker 1.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.system.namespaces import path_of
from polydev.hostagent.vmm.firecracker import limits
from polydev.hostagent.vmm.firecracker.binaries import Binaries

API_SOCKET = "api.sock"
"""In the jail's root."""
_NO_FILE = 256


@dataclass(frozen=True, slots=True)
class JailConfig:
    """Parameters of a jail; `id` names the jail and the cgroup."""

    id: str
    base: Path
    """The jail is `<base>/<name of the program>/<id>/root`."""
    uid: int
    parent_cgroup: str
    netns: str | None
    memory_mib: int
    vcpus: int
    largest_file_bytes: int
    """A compromised VMM must not fill the host."""


def root_of(config: JailConfig, binaries: Binaries) -> Path:
    """Return the folder that becomes the VMM's root."""
    return config.base / binaries.firecracker.name / config.id / "root"


def arguments(config: JailConfig, binaries: Binaries) -> list[str]:
    """Build the complete command."""
    network = ["--netns", str(path_of(config.netns))] if config.netns else []
    return [
        str(binaries.jailer),
        *("--id", config.id),
        *("--exec-file", str(binaries.firecracker)),
        *("--uid", str(config.uid), "--gid", str(config.uid)),
        *("--chroot-base-dir", str(config.base)),
        *("--cgroup-version", "2", "--parent-cgroup", config.parent_cgroup),
        *("--cgroup", f"memory.max={limits.memory_bytes(config.memory_mib)}"),
        *("--cgroup", f"cpu.max={limits.cpu_max(config.vcpus)}"),
        *("--cgroup", f"pids.max={limits.pids_max(config.vcpus)}"),
        *network,
        *("--resource-limit", f"fsize={config.largest_file_bytes}"),
        *("--resource-limit", f"no-file={_NO_FILE}"),
        "--",
        *("--api-sock", f"/{API_SOCKET}"),
    ]  # fmt: skip
