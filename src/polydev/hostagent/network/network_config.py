"""The VM network's configuration, derived once from the settings. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from polydev.hostagent.settings import Egress, HostSettings, Uplink

BRIDGE = "br0"
UPLINK = "uplink0"
TAP_PREFIX = "pd"
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Names, addresses and the egress policy of one host's VM network."""

    netns: str
    subnet: IPv4Network
    gateway: IPv4Address
    first_address: IPv4Address
    dns: tuple[IPv4Address, ...]
    has_uplink: bool
    uplink_netns: str | None
    uplink_network: IPv4Network
    egress: Egress
    proxy: tuple[IPv4Address, int] | None
    channel_port_base: int
    state_dir: Path
    """Holds the leases, and values to restore on removal."""

    @classmethod
    def from_settings(cls, settings: HostSettings) -> Self:
        return cls(
            netns=settings.netns,
            subnet=settings.subnet,
            gateway=settings.gateway,
            first_address=settings.first_address,
            dns=settings.dns,
            has_uplink=settings.uplink is Uplink.VETH,
            uplink_netns=settings.uplink_netns,
            uplink_network=settings.uplink_network,
            egress=settings.egress,
            proxy=_address_and_port(settings.egress_proxy),
            channel_port_base=settings.channel_port_base,
            state_dir=settings.state_dir / "network",
        )

    @property
    def bridge_mac(self) -> str:
        return mac_of(self.gateway, role=0)

    @property
    def outer_uplink(self) -> str:
        """Name of the uplink's outer end: unique on the host, at most 15 characters."""
        return "pdu" + hashlib.sha256(self.netns.encode()).hexdigest()[:8]

    @property
    def outer_table(self) -> str:
        return "polydev_" + self.netns.replace("-", "_")

    @property
    def uplink_outer_address(self) -> IPv4Address:
        return self.uplink_network[1]

    @property
    def uplink_inner_address(self) -> IPv4Address:
        return self.uplink_network[2]

    @property
    def last_address(self) -> IPv4Address:
        """The last address of a machine: each needs a channel port, too."""
        with_a_port = int(self.subnet.network_address) + _HIGHEST_PORT - self.channel_port_base
        return IPv4Address(min(int(self.subnet.broadcast_address) - 1, with_a_port))

    @property
    def address_count(self) -> int:
        """The most machines at a time."""
        count = int(self.last_address) - int(self.first_address) + 1
        return max(count - (self.first_address <= self.gateway <= self.last_address), 0)

    def index_of(self, address: IPv4Address) -> int:
        """Return an address's index in the subnet, which names TAP and channel port."""
        return int(address) - int(self.subnet.network_address)

    def tap_of(self, address: IPv4Address) -> str:
        return f"{TAP_PREFIX}{self.index_of(address)}"


def mac_of(address: IPv4Address, role: int) -> str:
    """Derive a locally administered MAC from an address and the NIC's role.

    0 is the bridge, 1 the VM network's NIC, 2 the private channel's.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, role, *address.packed))


def _address_and_port(proxy_url: str | None) -> tuple[IPv4Address, int] | None:
    if proxy_url is None:
        return None
    parts = urlsplit(proxy_url)
    return IPv4Address(parts.hostname or ""), parts.port or 80
