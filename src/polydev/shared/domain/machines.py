"""Machines, what goes into them, and the hosts that run them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.ids import NAMESPACE, HostId, SessionId, UserId, VmId
from polydev.shared.domain.machine_state import MachineState


class MachineKind(StrEnum):
    """What a machine is for."""

    CLI = "cli"
    BROWSER = "browser"


@dataclass(frozen=True, slots=True)
class MachineSize:
    """What a machine is made with."""

    memory_mib: int
    vcpus: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of what is limited a person uses, or may use."""

    machines: int
    memory_mib: int
    sessions: int


class WokeHow(StrEnum):
    """How a machine that slept came to run again."""

    RESUMED = "resumed"
    """With everything in its memory as it was."""
    BOOTED = "booted"
    """From its disk: its memory could not be used."""


@dataclass(frozen=True, slots=True)
class Hibernation:
    """How a machine last went to sleep, and how it last woke; nothing of it, if it never did."""

    hibernated_at: datetime | None = None
    hibernate_reason: str = ""
    problem: str = ""
    """Why it could not be put to sleep, or woken, the last time that it was to be."""
    resumed_at: datetime | None = None
    resume_reason: str = ""
    resumed_how: WokeHow | None = None
    boot_reason: str = ""
    """Why it was booted although its memory was on disk."""
    resume_took_s: float | None = None
    """How long its host took to wake it."""
    memory_on_disk_bytes: int | None = None
    """While it sleeps, and until it has woken: what its memory takes on its host's disk."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A row of `vms`: what the controller knows of a machine."""

    vm_id: VmId
    user_id: UserId
    vm_type: MachineKind
    status: MachineState
    ip_address: str | None
    session_id: SessionId | None
    """The connect session that created it, if one did."""
    host_id: HostId | None
    """Where it was placed; None: nowhere yet."""
    size: MachineSize
    error_code: str | None
    error: str | None
    created_at: datetime
    attempt: int = 0
    """How often it was asked to stop, start, sleep or wake, or to be made anew: names what does
    it."""
    used_at: datetime | None = None
    """When somebody last used it; None: not yet."""
    hibernation: Hibernation = Hibernation()

    @property
    def has_saved_memory(self) -> bool:
        """Whether it is on its way back from sleep, or will be when somebody wants it."""
        return self.hibernation.memory_on_disk_bytes is not None


class HostState(StrEnum):
    """Whether a host takes machines."""

    ACTIVE = "active"
    DRAINING = "draining"
    """Keeps its machines and takes no new ones."""


@dataclass(frozen=True, slots=True)
class VmHost:
    """A row of `hosts`: a machine that runs a host agent, and what it offers."""

    host_id: HostId
    socket: str
    """Path of the host agent's Unix socket."""
    state: HostState
    memory_mib: int
    """What its machines may have together."""
    vcpus: int
    """Virtual processors that its machines may have together."""
    max_machines: int
    """How many machines it has addresses for."""
    disk_free_mib: int
    driver: str
    accelerator: str
    version: str
    seen_at: datetime | None
    """When it last answered; None: it never did, and nothing is placed there."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `polydev doctor`: something that was looked at, and how it is."""

    name: str
    """What was looked at: `database`, `bridge`, `orphans`, ..."""
    ok: bool | None
    """None: it could not be looked at; the message says why."""
    message: str
    hint: str = ""
    """What to do, when it is not ok."""
    vm_id: str | None = None
    """The machine that it is about, if it is about one."""
    host_id: str | None = None
    """The VM host that said it, if one did."""


@dataclass(frozen=True, slots=True, repr=False)
class GuestFile:
    """A file to be put into a machine. `content` may be secret, so it has no repr."""

    path: str
    content: bytes
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"GuestFile({self.path!r}, {len(self.content)} bytes, {self.mode:#o})"


def vm_id_for(session_id: SessionId, kind: MachineKind) -> VmId:
    """The machine id that a session's machine of one kind has, the same every time it is asked.

    A workflow step that runs twice therefore asks the host for the same machine twice.
    """
    return VmId(f"vm-{uuid.uuid5(NAMESPACE, f'{session_id}/{kind}')}")
