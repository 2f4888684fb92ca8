"""The VM namespace's uplink: a veth pair, and its set-up on the outer side.

The outer end lives in the host's namespace, or in one named in the settings. It leaves three things
there, and `remove` reverts all of them: the device, one nftables table, and `ip_forward` switched
on (the former value is stored in a file). It knows no machines.
"""

from __future__ import annotations

import os
from pathlib import Path

from polydev.hostagent.network import firewall
from polydev.hostagent.network.bridge import Links, read_sysctl, write_sysctl
from polydev.hostagent.network.network_config import UPLINK, NetworkConfig
from polydev.hostagent.system import namespaces

_FORWARD = "net/ipv4/ip_forward"


class Uplink:
    """The veth pair of one VM network. Each method names the namespace of its thread."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._former_forward: Path = config.state_dir / "ip_forward.before"

    def connect(self, inner: Links) -> None:
        """Create the pair if it is missing. Thread: VM namespace."""
        if inner.index_of(UPLINK) is None:
            fd = os.open(self._outer_namespace(), os.O_RDONLY | os.O_CLOEXEC)
            try:
                inner.add_veth(UPLINK, self._config.outer_uplink, fd)
            finally:
                os.close(fd)
        prefix = self._config.uplink_network.prefixlen
        inner.set_address(UPLINK, self._config.uplink_inner_address, prefix)
        inner.up(UPLINK)

    def clear_stale(self, outer: Links) -> None:
        """Remove an outer end whose inner end is gone. Thread: outer namespace."""
        outer.remove(self._config.outer_uplink)

    def set_up_outer(self, outer: Links) -> None:
        """Set address, rules, then forwarding. Thread: outer namespace."""
        name = self._config.outer_uplink
        outer.set_address(
            name, self._config.uplink_outer_address, self._config.uplink_network.prefixlen
        )
        write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        firewall.load(firewall.outer_rules(self._config))
        outer.up(name)
        self._enable_forwarding()

    def route(self, inner: Links) -> None:
        """Set the default route through the pair. Thread: VM namespace."""
        inner.set_default_route(self._config.uplink_outer_address)

    def remove(self, outer: Links) -> None:
        """Revert all three. Thread: outer namespace."""
        outer.remove(self._config.outer_uplink)
        firewall.load(firewall.delete_table("inet", self._config.outer_table))
        if self._former_forward.exists():
            write_sysctl(_FORWARD, self._former_forward.read_text().strip())
            self._former_forward.unlink()

    def _enable_forwarding(self) -> None:
        before = read_sysctl(_FORWARD)
        if before == "1":
            return
        self._former_forward.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._former_forward.write_text(before)
        write_sysctl(_FORWARD, "1")

    def _outer_namespace(self) -> Path:
        name = self._config.uplink_netns
        return Path("/proc/self/ns/net") if name is None else namespaces.path_of(name)
