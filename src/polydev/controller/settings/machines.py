"""Settings of machines: hosts, sizes, quotas, hibernation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from polydev.shared.domain import LOCAL_HOST, HostId, MachineKind, MachineSize
from polydev.shared.providers import all_providers
from polydev.shared.settings.base import CommonSettings

_HOST_NAME = r"[a-z0-9][a-z0-9-]{0,31}"


class MachineSettings(CommonSettings):
    """Hosts, machine sizes, quotas and hibernation."""

    hosts: Annotated[tuple[tuple[HostId, Path], ...], NoDecode] = ()
    """VM hosts, as `name=/path/of/hostd.sock`, separated by spaces or commas. Unset: the host
    agent on this machine, named `local`."""
    host_period_s: float = Field(5, gt=0, le=60)
    """Interval between two polls of a host."""
    host_unseen_limit_s: float = Field(20, gt=0)
    """A host that has not answered for this long gets no new machines."""
    host_dead_limit_s: float = Field(45, gt=0)
    """After this long without an answer, machines that the host was creating count as failed."""
    reconcile_period_s: float = Field(30, gt=0)
    """Interval between two runs of the reconciler."""

    browser_memory_mib: int = Field(2048, ge=512)
    """Memory of a browser machine."""
    browser_vcpus: int = Field(2, ge=1)
    """vCPUs of a browser machine."""
    browser_disk_mib: int = Field(6144, ge=256)
    """Disk of a browser machine."""
    cli_memory_mib: int | None = Field(None, ge=256)
    """Memory of a CLI machine. Unset: what the provider's CLI needs."""
    cli_vcpus: int = Field(1, ge=1)
    """vCPUs of a CLI machine."""
    cli_disk_mib: int = Field(4096, ge=256)
    """Disk of a CLI machine."""

    quota_machines: int = Field(4, ge=0)
    """Machines per user, without the browser machines of connect sessions."""
    quota_memory_mib: int = Field(12288, ge=0)
    """Memory of all running machines of a user, including those of connect sessions."""
    quota_sessions: int = Field(3, ge=0)
    """Connect sessions of a user that may run at once."""
    file_limit_mib: int = Field(256, ge=1, le=65536)
    """Largest file that a user may upload or download."""

    hibernate_idle_s: float = Field(1800, ge=0)
    """Idle time after which a CLI machine is hibernated. 0: never."""
    hibernate_cpu: float = Field(0.1, gt=0)
    """Processor cores: a machine that uses more in any minute is not idle."""
    hibernate_limit_s: float = Field(120, gt=0)
    """Time limit for writing a machine's memory to disk."""

    @field_validator("hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        entries = value.replace(",", " ").split()
        pairs = [tuple(entry.split("=", 1)) for entry in entries]
        named = {pair[0] for pair in pairs if re.fullmatch(_HOST_NAME, pair[0])}
        if any(len(pair) != 2 or not pair[1].startswith("/") for pair in pairs):
            raise ValueError("write `name=/path/of/hostd.sock`")
        if len(named) != len(pairs):
            raise ValueError("names must be unique, of lower-case letters, digits and hyphens")
        return tuple(pairs)

    @property
    def vm_hosts(self) -> tuple[tuple[HostId, Path], ...]:
        """The hosts: name, and socket of the host agent."""
        return self.hosts or ((LOCAL_HOST, self.host_socket),)

    def machine_size(self, kind: MachineKind) -> MachineSize:
        """Return the size of a machine of one kind."""
        if kind is MachineKind.BROWSER:
            return MachineSize(self.browser_memory_mib, self.browser_vcpus, self.browser_disk_mib)
        # One CLI machine runs all CLIs of its user, so it fits the largest.
        memory_mib = self.cli_memory_mib or max(it.memory_mib for it in all_providers())
        return MachineSize(memory_mib, self.cli_vcpus, self.cli_disk_mib)
