"""The VM namespace's bridge and the machines' TAPs, through netlink and ioctl.

Everything here blocks and runs in the thread inside the VM namespace; `Network` calls it. It knows
no leases or rules. Ports neither learn nor flood: the bridge is given the MAC and address behind
each port, so that a machine receives only its own frames.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from polydev.hostagent.network.network_config import BRIDGE, TAP_PREFIX, NetworkConfig

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_UP = 0x1
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80

_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
}
_SYSCTLS_PER_DEVICE = {
    "rp_filter": "1",
    "route_localnet": "0",
    "accept_redirects": "0",
    "send_redirects": "0",
    "secure_redirects": "0",
    "accept_source_route": "0",
    "proxy_arp": "0",
    "arp_ignore": "1",
    "arp_announce": "2",
}

PORT_FLAGS = {
    "isolated": 1,
    "learning": 0,
    "unicast_flood": 0,
    "mcast_flood": 0,
    "bcast_flood": 0,
}
"""Flags of every bridge port: no learning, and no frames for others."""


@dataclass(frozen=True, slots=True)
class Device:
    """The state of a network device."""

    name: str
    mac: str
    is_up: bool
    master: str | None
    port_flags: dict[str, int]
    """Values of PORT_FLAGS, for bridge ports."""
    owner: int | None
    """The uid that may open it, for TAPs."""


class Links:
    """The devices of the calling thread's namespace."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute  # takes 0.2 s: only when a network is used

        self._route: Any = IPRoute()

    def close(self) -> None:
        self._route.close()

    def index_of(self, name: str) -> int | None:
        """Return a device's index, or None."""
        try:
            return socket.if_nametoindex(name)
        except OSError:
            return None

    def taps(self) -> list[str]:
        """Return the names of all machines' TAPs."""
        names = (name for _, name in socket.if_nameindex())
        return sorted(name for name in names if name.startswith(TAP_PREFIX))

    def set_up_bridge(self, config: NetworkConfig) -> None:
        """Set up loopback, sysctls, and the bridge with only the gateway's address."""
        set_sysctls()
        self.up("lo")
        if self.index_of(BRIDGE) is None:
            self._route.link("add", ifname=BRIDGE, kind="bridge")
        self._route.link("set", index=self._index(BRIDGE), kind="bridge", br_mcast_snooping=0)
        self._set_mac(BRIDGE, config.bridge_mac)
        self.set_address(BRIDGE, config.gateway, config.subnet.prefixlen)
        self.up(BRIDGE)

    def set_address(self, name: str, address: IPv4Address, prefix: int) -> None:
        """Give a device one IPv4 address and remove all others."""
        index = self._index(name)
        wanted = (str(address), prefix)
        for entry in self._route.get_addr(family=socket.AF_INET, index=index):
            has = (entry.get_attr("IFA_ADDRESS"), entry["prefixlen"])
            if has != wanted:
                self._route.addr("del", index=index, address=has[0], prefixlen=has[1])
        with _ignoring(errno.EEXIST):
            self._route.addr("add", index=index, address=wanted[0], prefixlen=prefix)

    def set_default_route(self, gateway: IPv4Address) -> None:
        self._route.route("replace", dst="default", gateway=str(gateway))

    def up(self, name: str) -> None:
        self._route.link("set", index=self._index(name), state="up")

    def add_veth(self, name: str, peer: str, peer_netns_fd: int) -> None:
        """Create a device pair: `name` here, `peer` in the other namespace."""
        self._route.link(
            "add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": peer_netns_fd}
        )

    def remove(self, name: str) -> None:
        """Delete a device, even if it is open. Idempotent."""
        index = self.index_of(name)
        if index is not None:
            with _ignoring(errno.ENODEV):
                self._route.link("del", index=index)

    def add_tap(self, tap: str, mac: str, address: IPv4Address, uid: int) -> None:
        """Create an isolated TAP that `uid` may open, for one MAC and address; set it up."""
        _make_tap(tap, uid)
        self.connect_tap(tap, mac, address)

    def connect_tap(self, tap: str, mac: str, address: IPv4Address) -> None:
        """Make a TAP its machine's bridge port, or repair it."""
        index = self._index(tap)
        self._route.link("set", index=index, master=self._index(BRIDGE))
        self._route.brport("set", index=index, **PORT_FLAGS)
        self.pin_address(tap, mac, address)
        self._route.link("set", index=index, state="up")

    def pin_address(self, tap: str, mac: str, address: IPv4Address) -> None:
        """Tell the bridge which MAC and address are behind a port.

        Ports neither learn nor are flooded.
        """
        bridge = self._index(BRIDGE)
        # "noarp" is what bridge(8) calls static; a "permanent" one would be the bridge's own.
        self._route.fdb(
            "replace", ifindex=self._index(tap), lladdr=mac, master=bridge, state="noarp"
        )
        self._route.neigh(
            "replace", dst=str(address), lladdr=mac, ifindex=bridge, state="permanent"
        )

    def remove_tap(self, tap: str, address: IPv4Address) -> None:
        """Remove a machine's TAP and its entries in the bridge. Idempotent."""
        self.remove(tap)
        bridge = self.index_of(BRIDGE)
        if bridge is not None:
            with _ignoring(errno.ENOENT):
                self._route.neigh("del", dst=str(address), ifindex=bridge)

    def end_connections(self, mark: int) -> None:
        """Drop tracked connections with this mark, so that no other machine inherits them."""
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        with NFCTSocket() as tracking:
            tracking.flush(mark=mark)

    def devices(self) -> dict[str, Device]:
        """Return the state of every device in the namespace."""
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in self._route.get_links()}
        found = {}
        for link in self._route.get_links():
            name = str(link.get_attr("IFLA_IFNAME"))
            info = link.get_attr("IFLA_LINKINFO")
            port: Any = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
            tun: Any = info.get_attr("IFLA_INFO_DATA") if info else None
            found[name] = Device(
                name=name,
                mac=str(link.get_attr("IFLA_ADDRESS")),
                is_up=bool(link["flags"] & _IFF_UP),
                master=names.get(link.get_attr("IFLA_MASTER")),
                port_flags={
                    flag: int(port.get_attr(f"IFLA_BRPORT_{flag.upper()}") or 0)
                    for flag in (PORT_FLAGS if port else ())
                },
                owner=tun.get_attr("IFLA_TUN_OWNER") if tun else None,
            )
        return found

    def addresses_of(self, name: str) -> list[str]:
        """Return a device's IPv4 addresses with prefixes."""
        entries = self._route.get_addr(family=socket.AF_INET, index=self._index(name))
        return sorted(f"{it.get_attr('IFA_ADDRESS')}/{it['prefixlen']}" for it in entries)

    def is_pinned(self, tap: str, mac: str, address: IPv4Address) -> bool:
        """Return True if the bridge maps this MAC and address to this port."""
        bridge = self._index(BRIDGE)
        macs = (
            entry.get_attr("NDA_LLADDR")
            for entry in self._route.fdb("dump", ifindex=self._index(tap))
            if entry["state"] & _NUD_NOARP
        )
        neighbours = (
            (entry.get_attr("NDA_DST"), entry.get_attr("NDA_LLADDR"))
            for entry in self._route.get_neighbours(family=socket.AF_INET, ifindex=bridge)
            if entry["state"] & _NUD_PERMANENT
        )
        return mac in macs and (str(address), mac) in neighbours

    def default_gateway(self) -> str | None:
        """Return the default route's gateway."""
        routes = self._route.get_default_routes(family=socket.AF_INET)
        return next((str(it.get_attr("RTA_GATEWAY")) for it in routes), None)

    def _set_mac(self, name: str, mac: str) -> None:
        """Set the MAC only if it differs: the kernel drops all neighbours on a change."""
        index = self._index(name)
        if self._route.get_links(index)[0].get_attr("IFLA_ADDRESS") != mac:
            self._route.link("set", index=index, address=mac)

    def _index(self, name: str) -> int:
        return socket.if_nametoindex(name)


def set_sysctls() -> None:
    """Set the namespace's sysctls, before any device is added."""
    for name, value in _SYSCTLS.items():
        write_sysctl(name, value)
    for device in ("all", "default"):
        for name, value in _SYSCTLS_PER_DEVICE.items():
            write_sysctl(f"net/ipv4/conf/{device}/{name}", value)


def write_sysctl(name: str, value: str) -> None:
    """Set a sysctl in the thread's namespace; skip one that this kernel lacks."""
    path = Path("/proc/sys") / name
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)


def read_sysctl(name: str) -> str:
    return (Path("/proc/sys") / name).read_text().strip()


def _make_tap(tap: str, uid: int) -> None:
    """Create a persistent TAP with virtio headers; leave one that is open as it is."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))
        fcntl.ioctl(fd, _TUNSETOWNER, uid)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(fd)


class _ignoring(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a verb
    """Suppresses netlink errors with given codes."""

    def __init__(self, *codes: int) -> None:
        self._codes: Iterable[int] = codes

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        from pyroute2.netlink.exceptions import NetlinkError

        return isinstance(error, NetlinkError) and error.code in self._codes
