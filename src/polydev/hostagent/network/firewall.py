"""The rules of the VM network, as nftables text, and the one way they get into the kernel.

`Network` and `uplink.py` call this, from a thread inside the namespace that the rules are for; a
program started by that thread is inside it too. Whole tables are replaced in one transaction, so
there is never a moment without rules. It knows nothing of leases or TAPs' making.

What a machine could try, and what stops it:
- another MAC or address in a frame or in an ARP packet: `senders`, in the bridge's prerouting;
- anything that is not IPv4 or ARP, VLAN tags included: the same chain's policy;
- frames to another machine: bridge forward policy, isolated ports;
- frames to 01:80:c2:00:00:0e, which the bridge hands up as if the port itself had received them,
  past every bridge hook: `stray` in the inet table;
- the host, private networks, metadata addresses: input and forward policies, `egress`;
- using up the connection table: a limit of connections a machine;
- a taken-over VMM (it runs in this namespace): `output` lets only root open connections.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from polydev.hostagent.network.network_config import BRIDGE, TAP_PREFIX, UPLINK, NetworkPlan
from polydev.hostagent.settings import Egress
from polydev.shared.errors import MissingTool, NetworkFailed

TABLE = "polydev"
CONNECTIONS_PER_MACHINE = 2048
_NFT_LIMIT_S = 30

_NEVER_PUBLIC = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",
    )
)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who may send on a TAP: one MAC with one address."""

    tap: str
    mac: str
    address: str

    @property
    def mark(self) -> int:
        """What its connections are marked with, so that they can be ended with the machine."""
        return int(IPv4Address(self.address))

    def element(self) -> str:
        return f'"{self.tap}" . {self.mac} . {self.address}'

    def marking(self) -> str:
        return f"{self.address} : {self.mark:#x}"


def vm_rules(plan: NetworkPlan, senders: Sequence[Sender]) -> str:
    """All tables of the VM namespace, replacing whatever they held, in one transaction."""
    return (
        _replacing("bridge", TABLE, _bridge_table(plan, senders))
        + _replacing("inet", TABLE, _inet_table(plan, senders))
        + _replacing("arp", TABLE, _ARP_TABLE)
    )


def outer_rules(plan: NetworkPlan) -> str:
    """The one table on the uplink's outer side: NAT outward, and no way into that side itself."""
    outer = plan.outer_uplink
    body = f"""
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{outer}" jump from_machines
    }}
    chain from_machines {{
        ct state established,related accept
        {_lines(_exceptions(plan))}
        drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname "{outer}" ip saddr != {plan.uplink_inner_address} drop
        oifname "{outer}" ct state established,related accept
        oifname "{outer}" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {plan.uplink_inner_address} oifname != "{outer}" masquerade
    }}
"""
    return _replacing("inet", plan.outer_table, body)


def without_table(family: str, table: str) -> str:
    """Remove a table, also when it is not there."""
    return f"add table {family} {table}\ndelete table {family} {table}\n"


def with_sender(sender: Sender) -> str:
    """Let one machine send; nothing changes if it may already."""
    return _about(sender, "add")


def without_sender(sender: Sender) -> str:
    """Take that from it, also when it has not got it."""
    return _about(sender, "add") + _about(sender, "delete")


def _about(sender: Sender, verb: str) -> str:
    return (
        f"{verb} element bridge {TABLE} senders {{ {sender.element()} }}\n"
        f"{verb} element inet {TABLE} marks {{ {sender.marking()} }}\n"
    )


def load(rules: str) -> None:
    """Give rules to the kernel: all of them or, when one is refused, none. Blocking."""
    _nft("-f", "-", rules=rules)


def senders_text() -> str:
    """The anti-spoofing set as `nft -j` tells it, or nothing if there is no such table."""
    try:
        return _nft("-j", "list", "set", "bridge", TABLE, "senders")
    except NetworkFailed:
        return ""


def listing(*table: str) -> str:
    """All tables of the thread's namespace as `nft -j` tells them, or one: family and name.

    Nothing if there is no such table.
    """
    try:
        return _nft("-j", "list", *(("table", *table) if table else ("ruleset",)))
    except NetworkFailed:
        return ""


def _nft(*arguments: str, rules: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=rules,
            capture_output=True,
            text=True,
            timeout=_NFT_LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise MissingTool("nft is not installed", hint="apt-get install nftables") from None
    except subprocess.TimeoutExpired as error:
        raise NetworkFailed(f"nft did not answer within {_NFT_LIMIT_S} s") from error
    if done.returncode != 0:
        raise NetworkFailed(f"nft refused the rules: {done.stderr.strip()[:500]}")
    return done.stdout


def _replacing(family: str, table: str, body: str) -> str:
    return without_table(family, table) + f"table {family} {table} {{{body}}}\n"


def _bridge_table(plan: NetworkPlan, senders: Iterable[Sender]) -> str:
    return f"""
    set senders {{
        type ifname . ether_addr . ipv4_addr
        {_elements(sender.element() for sender in senders)}
    }}
    chain prerouting {{
        type filter hook prerouting priority -300; policy drop;
        ether type ip ether daddr {plan.bridge_mac} \\
            iifname . ether saddr . ip saddr @senders accept
        ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \\
            ether daddr {{ {plan.bridge_mac}, ff:ff:ff:ff:ff:ff }} \\
            iifname . ether saddr . arp saddr ip @senders \\
            iifname . arp saddr ether . arp saddr ip @senders accept
        counter
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
    }}
"""


_ARP_TABLE = f"""
    chain input {{
        type filter hook input priority 0; policy accept;
        iifname "{TAP_PREFIX}*" drop
    }}
"""


def _inet_table(plan: NetworkPlan, senders: Iterable[Sender]) -> str:
    return (
        _inet_sets(plan, senders)
        + f"""
    chain stray {{
        type filter hook prerouting priority -310; policy accept;
        iifname "{TAP_PREFIX}*" drop
    }}
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname "lo" accept
        iifname "{BRIDGE}" ip daddr {plan.gateway} icmp type echo-request accept
        {_at_gateway(plan)}
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "{BRIDGE}" oifname "{UPLINK}" ip saddr {plan.subnet} ct state new jump egress
    }}
    chain egress {{
        ct mark set ip saddr map @marks
        add @connections {{ ip saddr ct count over {CONNECTIONS_PER_MACHINE} }} drop
        {_lines(_exceptions(plan))}
        {"ip daddr != @blocked accept" if plan.egress is Egress.OPEN else ""}
        limit rate 200/second burst 200 packets reject with icmp type admin-prohibited
    }}
    chain output {{
        type filter hook output priority 0; policy drop;
        ct state established,related accept
        oifname "lo" meta skuid 0 accept
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        oifname "{UPLINK}" ip saddr {plan.subnet} masquerade
    }}
"""
    )


def _inet_sets(plan: NetworkPlan, senders: Iterable[Sender]) -> str:
    blocked = ", ".join(str(network) for network in _blocked(plan))
    return f"""
    set blocked {{
        type ipv4_addr; flags interval
        elements = {{ {blocked} }}
    }}
    set connections {{
        type ipv4_addr; flags dynamic; size 65536
    }}
    map marks {{
        type ipv4_addr : mark
        {_elements(sender.marking() for sender in senders)}
    }}
"""


def _blocked(plan: NetworkPlan) -> Iterable[IPv4Network]:
    return collapse_addresses((*_NEVER_PUBLIC, plan.subnet, plan.uplink_network))


def _exceptions(plan: NetworkPlan) -> list[str]:
    """What may be reached although it is private: the proxy, and resolvers when egress is open."""
    if plan.egress is Egress.NONE:
        return []
    rules = []
    if plan.proxy is not None:
        rules.append(f"ip daddr {plan.proxy[0]} tcp dport {plan.proxy[1]} accept")
    if plan.egress is Egress.OPEN and plan.dns:
        servers = ", ".join(str(address) for address in plan.dns)
        rules.append(f"ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept")
    return rules


def _at_gateway(plan: NetworkPlan) -> str:
    """A proxy may listen on the gateway itself."""
    if plan.egress is Egress.NONE or plan.proxy is None or plan.proxy[0] != plan.gateway:
        return ""
    return f'iifname "{BRIDGE}" ip daddr {plan.gateway} tcp dport {plan.proxy[1]} accept'


def _elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f"elements = {{ {joined} }}" if joined else ""


def _lines(rules: Iterable[str]) -> str:
    return "\n        ".join(rules)
