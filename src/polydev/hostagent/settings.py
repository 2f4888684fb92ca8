"""The host agent's settings. `__main__.py` reads them once at start."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from polydev.hostagent.system.entry_points import DRIVERS, find
from polydev.shared.errors import BadSettings
from polydev.shared.hints import Hint
from polydev.shared.settings.base import CommonSettings, Settings


class Egress(StrEnum):
    """The destinations that machines may connect to."""

    OPEN = "open"
    PROXY = "proxy"
    NONE = "none"


class Uplink(StrEnum):
    """The connection of the VM namespace to the outside."""

    VETH = "veth"
    NONE = "none"


class NetworkSettings(Settings):
    """The VM network of this host."""

    netns: str = Field("polydev", pattern="^[a-z0-9][a-z0-9-]{0,31}$")
    """Name of the network namespace that holds the VM network."""
    subnet: IPv4Network = IPv4Network("192.168.100.0/24")
    """The VM network."""
    gateway: IPv4Address = IPv4Address("192.168.100.1")
    """Address of the bridge. It must lie in the subnet."""
    first_address: IPv4Address = IPv4Address("192.168.100.5")
    """The lowest address that a machine may get."""
    dns: Annotated[tuple[IPv4Address, ...], NoDecode] = (IPv4Address("8.8.8.8"),)
    """Resolvers of the machines, separated by commas."""
    uplink: Uplink = Uplink.VETH
    """Connection of the VM network to the outside: `veth`, or `none`."""
    uplink_netns: str | None = None
    """Network namespace of the uplink's outer end. Unset: the host's own."""
    uplink_network: IPv4Network = IPv4Network("100.64.77.0/30")
    """Addresses of the uplink: the first is the outer end, the second the VM namespace's."""

    egress: Egress = Egress.OPEN
    """Destinations that machines may connect to: the internet, only the proxy, or none."""
    egress_proxy: str | None = Field(None, pattern=r"^http://[0-9.]+:\d{1,5}$")
    """Required with `POLYDEV_EGRESS=proxy`: the only address that machines can reach."""
    egress_ca_file: Path | None = None
    """PEM file of certificate authorities that every machine trusts besides the usual ones."""

    channel_port_base: int = Field(22000, ge=1024, le=65000)
    """First port in the VM namespace for the private channels of QEMU machines."""

    @field_validator("dns", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    def check(self) -> Self:
        """Refuse settings that only fail in combination. Raises BadSettings."""
        if self.egress is Egress.PROXY and not self.egress_proxy:
            raise BadSettings(
                "POLYDEV_EGRESS=proxy needs POLYDEV_EGRESS_PROXY",
                hint=Hint.SET_EGRESS_PROXY.text(),
            )
        if self.gateway not in self.subnet or self.first_address not in self.subnet:
            raise BadSettings(
                "POLYDEV_GATEWAY and POLYDEV_FIRST_ADDRESS must lie in POLYDEV_SUBNET",
                hint=Hint.SUBNET_IS.text(subnet=self.subnet),
            )
        return super().check()


class VmmSettings(Settings):
    """The hypervisor and its limits per machine."""

    driver: str = Field("auto", pattern=f"^({'|'.join(map(re.escape, ('auto', *find(DRIVERS))))})$")
    """`auto` takes Firecracker if a guest runs under it, else QEMU. `simulated` runs no guest; it
    is for load tests."""
    simulation: dict[str, str | float | bool] = Field(default_factory=dict)
    """Behaviour of simulated machines, as a JSON object."""

    firecracker: Path | None = None
    """The `firecracker` program. Unset: the one on `PATH`."""
    jailer: Path | None = None
    """The `jailer` program of the same release. Unset: the one on `PATH`."""
    machines_cgroup: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*(/[A-Za-z0-9_][A-Za-z0-9_.@-]*)*$"
    )
    """Parent cgroup of all machines, relative to the cgroup v2 root; no other program may use it.
    Unset: named after `POLYDEV_NETNS`."""

    disk_limit_mib_s: int = Field(256, ge=0, le=65536)
    """Bandwidth limit of each drive of a Firecracker machine. 0: no limit."""
    disk_limit_operations_s: int = Field(20_000, ge=0)
    """Operations per second of each drive of a Firecracker machine. 0: no limit."""
    network_limit_mib_s: int = Field(125, ge=0, le=65536)
    """Bandwidth limit of each Firecracker machine, per direction. 0: no limit."""


class HostSettings(NetworkSettings, VmmSettings, CommonSettings):
    """All settings of the host agent."""

    socket_group: str | None = None
    """Group that may connect to the host agent's socket, besides root."""

    host_memory_mib: int | None = Field(None, ge=0)
    """Memory for all machines together. Unset: nearly all that the host has."""
    host_vcpus: int | None = Field(None, ge=0)
    """vCPUs for all machines together. Unset: four times the host's processors."""
    memory_overcommit: float = Field(1.0, gt=0, le=16)
    """Factor by which the host may promise more memory than it has."""
    memory_key_dir: Path | None = None
    """Folder of the key that seals hibernated memory; it must be in memory, not on disk. Unset:
    `/run` or `/dev/shm`."""

    warm_start: bool | None = None
    """Clone browser machines from a template whose browser already runs. Unset: yes, but not for
    simulated machines."""
    warm_waiting: int = Field(1, ge=0, le=32)
    """Number of standby clones that wait for the next login, if the host has the memory."""
    warm_quiet_s: float = Field(60, ge=0)
    """Idle time of the host before it prepares a standby clone."""

    @property
    def cgroup(self) -> str:
        """Parent cgroup of the machines, relative to the cgroup v2 root."""
        return self.machines_cgroup or self.netns
