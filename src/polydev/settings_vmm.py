"""The settings of what runs machines: which VMM, and what each may do. A part of the host agent's
settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class VmmSettings(BaseModel):
    """Each is an environment variable, `POLYDEV_` and its name."""

    driver: str = Field("auto", pattern="^(auto|firecracker|qemu|simulated)$")
    """`auto` is Firecracker where a guest runs under it, else QEMU; `simulated` runs no guest at
    all (load tests)."""
    simulation: dict[str, str | float | bool] = {}
    """How simulated machines behave, as JSON: vmm/simulated/simulation.py."""

    firecracker: Path | None = None
    """The program; None: the one on PATH."""
    jailer: Path | None = None
    """Firecracker's own, of the same release; None: the one on PATH."""
    machines_cgroup: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*(/[A-Za-z0-9_][A-Za-z0-9_.@-]*)*$"
    )
    """Below the root of cgroup v2: where each machine's VMM has a cgroup; None: in one of the VM
    network namespace's name. It must be this host agent's alone."""

    disk_limit_mib_s: int = Field(256, ge=0, le=65536)
    """What each drive of a Firecracker machine may read and write; 0: as much as it can."""
    disk_limit_operations_s: int = Field(20_000, ge=0)
    network_limit_mib_s: int = Field(125, ge=0, le=65536)
    """What each Firecracker machine may send, and receive; 0: as much as it can."""

    memory_overcommit: float = Field(1.0, gt=0, le=16)
    """How many times its memory this host promises to machines that run at once."""
    memory_key_dir: Path | None = None
    """Where the key to sleeping machines' memory lies; None: in the first of /run and /dev/shm that
    is a filesystem in memory. On a disk it would protect nothing."""

    warm_start: bool | None = None
    """Browser machines are cloned of one whose browser is up, where that can be had; None: unless
    machines are simulated."""
    warm_waiting: int = Field(1, ge=0, le=32)
    """How many clones wait for whoever logs in next, while the host has the memory."""
    warm_quiet_s: float = Field(60, ge=0)
    """How long nothing must be going on before that one is made: it takes two processors a while
    where machines are emulated."""
