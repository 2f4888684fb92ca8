"""The way out of the VM namespace: a veth pair, and what its outer side needs.

The outer end lives in the host's own namespace on a real deployment, or in one that the settings
name. There it leaves three things, and `remove` takes all of them back: the device, one nftables
table, and `ip_forward` switched on (its former value is kept in a file until then). `Network` calls
this; it knows nothing of machines.
"""

from __future__ import annotations

import os
from pathlib import Path

from polydev.hostagent.network import firewall
from polydev.hostagent.network.bridge import Links, read_sysctl, write_sysctl
from polydev.hostagent.network.network_config import UPLINK, NetworkPlan
from polydev.hostagent.system import namespaces

_FORWARD = "net/ipv4/ip_forward"


class Uplink:
    """The pair of one VM network. Each method says which namespace its thread must be in."""

    def __init__(self, plan: NetworkPlan) -> None:
        self._plan = plan
        self._former_forward: Path = plan.state_dir / "ip_forward.before"

    def join(self, inner: Links) -> None:
        """Make the pair, unless it is there already. Thread: inside the VM namespace."""
        if inner.index_of(UPLINK) is None:
            fd = os.open(self._outer_namespace(), os.O_RDONLY | os.O_CLOEXEC)
            try:
                inner.add_veth(UPLINK, self._plan.outer_uplink, fd)
            finally:
                os.close(fd)
        prefix = self._plan.uplink_network.prefixlen
        inner.set_address(UPLINK, self._plan.uplink_inner_address, prefix)
        inner.up(UPLINK)

    def clear_stale(self, outer: Links) -> None:
        """Remove an outer end whose inner end is not in our namespace. Thread: outer."""
        outer.remove(self._plan.outer_uplink)

    def set_up_outer(self, outer: Links) -> None:
        """Address, rules, then forwarding. Thread: inside the outer namespace."""
        name = self._plan.outer_uplink
        outer.set_address(
            name, self._plan.uplink_outer_address, self._plan.uplink_network.prefixlen
        )
        write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        firewall.load(firewall.outer_rules(self._plan))
        outer.up(name)
        self._forward()

    def route(self, inner: Links) -> None:
        """Send what is not for the VM network out through the pair. Thread: VM namespace."""
        inner.set_default_route(self._plan.uplink_outer_address)

    def remove(self, outer: Links) -> None:
        """Take back all three. Thread: inside the outer namespace."""
        outer.remove(self._plan.outer_uplink)
        firewall.load(firewall.without_table("inet", self._plan.outer_table))
        if self._former_forward.exists():
            write_sysctl(_FORWARD, self._former_forward.read_text().strip())
            self._former_forward.unlink()

    def _forward(self) -> None:
        before = read_sysctl(_FORWARD)
        if before == "1":
            return
        self._former_forward.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._former_forward.write_text(before)
        write_sysctl(_FORWARD, "1")

    def _outer_namespace(self) -> Path:
        name = self._plan.uplink_netns
        return Path("/proc/self/ns/net") if name is None else namespaces.path_of(name)
