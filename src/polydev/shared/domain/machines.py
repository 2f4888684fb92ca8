"""Machines, files for them, and the hosts that run them."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from polydev.shared.domain.ids import NAMESPACE, HostId, SessionId, UserId, VmId
from polydev.shared.domain.machine_state import MachineState


class MachineKind(StrEnum):
    """Purpose of a machine."""

    CLI = "cli"
    BROWSER = "browser"


@dataclass(frozen=True, slots=True)
class MachineSize:
    """Memory, vCPUs and disk of a machine."""

    memory_mib: int
    vcpus: int
    disk_mib: int

    def fields(self) -> dict[str, Any]:
        """Return the values by name, for a flat model or row."""
        return asdict(self)


class _SizeFields(Protocol):
    @property
    def memory_mib(self) -> int: ...
    @property
    def vcpus(self) -> int: ...
    @property
    def disk_mib(self) -> int: ...


class FlatSize:
    """Mixin of models whose JSON holds a machine's size in flat fields."""

    @property
    def size(self: _SizeFields) -> MachineSize:
        """The machine's size."""
        return MachineSize(self.memory_mib, self.vcpus, self.disk_mib)


@dataclass(frozen=True, slots=True)
class Usage:
    """Amounts that count against a user's quotas, or the quotas themselves."""

    machines: int
    memory_mib: int
    sessions: int


class WokeHow(StrEnum):
    """Source of a machine's state when it resumed: saved memory or disk."""

    RESUMED = "resumed"
    """From its saved memory."""
    BOOTED = "booted"
    """From its disk, because its saved memory was unusable."""


@dataclass(frozen=True, slots=True)
class Hibernation:
    """The last hibernation of a machine, and the last resume."""

    hibernated_at: datetime | None = None
    hibernate_reason: str = ""
    problem: str = ""
    """Error of the last hibernate or resume that failed."""
    resumed_at: datetime | None = None
    resume_reason: str = ""
    resumed_how: WokeHow | None = None
    boot_reason: str = ""
    """Reason for a boot in spite of saved memory."""
    resume_took_s: float | None = None
    """Time that its host took to resume it."""
    memory_on_disk_bytes: int | None = None
    """Size of its saved memory on the host's disk. None when there is none."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Row of `vms`: the controller's record of a machine."""

    vm_id: VmId
    user_id: UserId
    vm_type: MachineKind
    status: MachineState
    ip_address: str | None
    session_id: SessionId | None
    """Connect session that created it, if any."""
    host_id: HostId | None
    """Host that it was placed on. None: not placed yet."""
    size: MachineSize
    error_code: str | None
    error: str | None
    created_at: datetime
    attempt: int = 0
    """Number of commands so far. Part of the ids of the workflows that carry them out."""
    used_at: datetime | None = None
    """Time of its last use. None: not used yet."""
    hibernation: Hibernation = Hibernation()

    @property
    def has_saved_memory(self) -> bool:
        """It resumes from saved memory when it is started."""
        return self.hibernation.memory_on_disk_bytes is not None


class HostState(StrEnum):
    """Administrative state of a host."""

    ACTIVE = "active"
    DRAINING = "draining"
    """Keeps its machines and gets no new ones."""


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of memory, vCPUs and machine slots."""

    memory_mib: int = 0
    vcpus: int = 0
    machines: int = 0

    @classmethod
    def for_machine(cls, size: MachineSize, *, new: bool = True) -> Resources:
        """Return what a machine takes. One that is only started again already has its slot."""
        return cls(size.memory_mib, size.vcpus, int(new))

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.memory_mib + other.memory_mib,
            self.vcpus + other.vcpus,
            self.machines + other.machines,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.memory_mib - other.memory_mib,
            self.vcpus - other.vcpus,
            self.machines - other.machines,
        )

    def clamped(self) -> Resources:
        """Return the same amounts, with 0 instead of negative ones."""
        return Resources(max(self.memory_mib, 0), max(self.vcpus, 0), max(self.machines, 0))

    def covers(self, other: Resources) -> bool:
        """Check that `other` is no larger in any respect."""
        return (
            other.memory_mib <= self.memory_mib
            and other.vcpus <= self.vcpus
            and other.machines <= self.machines
        )

    def __str__(self) -> str:
        return f"{self.memory_mib} MiB and {self.vcpus} vCPUs"


@dataclass(frozen=True, slots=True)
class VmHost:
    """Row of `hosts`: a host agent and its capacity."""

    host_id: HostId
    socket: str
    """Path of the host agent's Unix socket."""
    state: HostState
    memory_mib: int
    """Memory for all of its machines together."""
    vcpus: int
    """vCPUs for all of its machines together."""
    max_machines: int
    """Number of machines that it has addresses for."""
    disk_free_mib: int
    driver: str
    accelerator: str
    version: str
    seen_at: datetime | None
    """Time of its last answer. None: it never answered, and gets no machines."""
    created_at: datetime

    @property
    def capacity(self) -> Resources:
        """Amounts for all of its machines together."""
        return Resources(self.memory_mib, self.vcpus, self.max_machines)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `polydev doctor`: a check and its result."""

    name: str
    """Name of the check: `database`, `bridge`, `orphans`, ..."""
    ok: bool | None
    """None: the check could not run. The message says why."""
    message: str
    hint: str = ""
    """Advice when the check failed."""
    vm_id: str | None = None
    """Machine that it concerns, if any."""
    host_id: str | None = None
    """VM host that reported it, if any."""


@dataclass(frozen=True, slots=True, repr=False)
class GuestFile:
    """A file for a machine. The repr leaves `content` out, since it may be secret."""

    path: str
    content: bytes
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"GuestFile({self.path!r}, {len(self.content)} bytes, {self.mode:#o})"


def vm_id_for(session_id: SessionId, kind: MachineKind) -> VmId:
    """Derive the id of a session's machine of one kind.

    A workflow step that runs twice therefore asks the host for the same machine.
    """
    return VmId(f"vm-{uuid.uuid5(NAMESPACE, f'{session_id}/{kind}')}")
