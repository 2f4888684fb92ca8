"""The VM network's nftables rules, as text, and the functions that load them.

`Network` and `uplink.py` call it from a thread inside the rules' namespace; a program started by
that thread runs inside it too. Tables are replaced as a whole in one transaction, so that rules are
in force at every moment. It knows no leases, and no creation of TAPs.

Attacks by a machine, and the rule that stops each:
- another MAC or address in a frame or ARP packet: `senders`, in the bridge's prerouting;
- anything but IPv4 and ARP, VLAN tags included: the same chain's policy;
- frames to another machine: the bridge's forward policy, isolated ports;
- frames to 01:80:c2:00:00:0e, which the bridge delivers as if the port had received them, past
  every bridge hook: `stray` in the inet table;
- the host, private networks, metadata addresses: input and forward policies, `egress`;
- exhausting the connection table: a limit of connections per machine;
- a compromised VMM (it runs in this namespace): `output` lets only root open connections.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from polydev.hostagent.network.network_config import BRIDGE, TAP_PREFIX, UPLINK, NetworkConfig
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
    """A permitted sender on a TAP: one MAC with one address."""

    tap: str
    mac: str
    address: str

    @property
    def mark(self) -> int:
        """Mark of its connections, which ends them together with the machine."""
        return int(IPv4Address(self.address))

    def element(self) -> str:
        return f'"{self.tap}" . {self.mac} . {self.address}'

    def marking(self) -> str:
        return f"{self.address} : {self.mark:#x}"


def vm_rules(config: NetworkConfig, senders: Sequence[Sender]) -> str:
    """Build all tables of the VM namespace; they replace the existing ones atomically."""
    return (
        _replace_table("bridge", TABLE, _bridge_table(config, senders))
        + _replace_table("inet", TABLE, _inet_table(config, senders))
        + _replace_table("arp", TABLE, _ARP_TABLE)
    )


def outer_rules(config: NetworkConfig) -> str:
    """Build the outer table: NAT outward, and no access to the outer side itself."""
    outer = config.outer_uplink
    body = f"""
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{outer}" jump from_machines
    }}
    chain from_machines {{
        ct state established,related accept
        {_lines(_exceptions(config))}
        drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname "{outer}" ip saddr != {config.uplink_inner_address} drop
        oifname "{outer}" ct state established,related accept
        oifname "{outer}" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {config.uplink_inner_address} oifname != "{outer}" masquerade
    }}
"""
    return _replace_table("inet", config.outer_table, body)


def delete_table(family: str, table: str) -> str:
    """Delete a table; one that does not exist is no error."""
    return f"add table {family} {table}\ndelete table {family} {table}\n"


def allow_sender(sender: Sender) -> str:
    """Permit one machine to send. Idempotent."""
    return _sender_elements(sender, "add")


def deny_sender(sender: Sender) -> str:
    """Revoke a machine's permission to send. Idempotent."""
    return _sender_elements(sender, "add") + _sender_elements(sender, "delete")


def _sender_elements(sender: Sender, verb: str) -> str:
    return (
        f"{verb} element bridge {TABLE} senders {{ {sender.element()} }}\n"
        f"{verb} element inet {TABLE} marks {{ {sender.marking()} }}\n"
    )


def load(rules: str) -> None:
    """Load rules into the kernel: all or, on an error, none. Blocking."""
    _run_nft("-f", "-", rules=rules)


def list_senders() -> str:
    """List the anti-spoofing set as JSON; empty without such a table."""
    try:
        return _run_nft("-j", "list", "set", "bridge", TABLE, "senders")
    except NetworkFailed:
        return ""


def list_rules(*table: str) -> str:
    """List all tables of the thread's namespace as JSON, or one: family and name.

    Empty without such a table.
    """
    try:
        return _run_nft("-j", "list", *(("table", *table) if table else ("ruleset",)))
    except NetworkFailed:
        return ""


def _run_nft(*arguments: str, rules: str | None = None) -> str:
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
        raise NetworkFailed(f"nft did not finish within {_NFT_LIMIT_S} s") from error
    if done.returncode != 0:
        raise NetworkFailed(f"nft rejected the rules: {done.stderr.strip()[:500]}")
    return done.stdout


def _replace_table(family: str, table: str, body: str) -> str:
    return delete_table(family, table) + f"table {family} {table} {{{body}}}\n"


def _bridge_table(config: NetworkConfig, senders: Iterable[Sender]) -> str:
    return f"""
    set senders {{
        type ifname . ether_addr . ipv4_addr
        {_elements(sender.element() for sender in senders)}
    }}
    chain prerouting {{
        type filter hook prerouting priority -300; policy drop;
        ether type ip ether daddr {config.bridge_mac} \\
            iifname . ether saddr . ip saddr @senders accept
        ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \\
            ether daddr {{ {config.bridge_mac}, ff:ff:ff:ff:ff:ff }} \\
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


def _inet_table(config: NetworkConfig, senders: Iterable[Sender]) -> str:
    return (
        _inet_sets(config, senders)
        + f"""
    chain stray {{
        type filter hook prerouting priority -310; policy accept;
        iifname "{TAP_PREFIX}*" drop
    }}
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname "lo" accept
        iifname "{BRIDGE}" ip daddr {config.gateway} icmp type echo-request accept
        {_gateway_proxy_rule(config)}
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "{BRIDGE}" oifname "{UPLINK}" ip saddr {config.subnet} ct state new jump egress
    }}
    chain egress {{
        ct mark set ip saddr map @marks
        add @connections {{ ip saddr ct count over {CONNECTIONS_PER_MACHINE} }} drop
        {_lines(_exceptions(config))}
        {"ip daddr != @blocked accept" if config.egress is Egress.OPEN else ""}
        limit rate 200/second burst 200 packets reject with icmp type admin-prohibited
    }}
    chain output {{
        type filter hook output priority 0; policy drop;
        ct state established,related accept
        oifname "lo" meta skuid 0 accept
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        oifname "{UPLINK}" ip saddr {config.subnet} masquerade
    }}
"""
    )


def _inet_sets(config: NetworkConfig, senders: Iterable[Sender]) -> str:
    blocked = ", ".join(str(network) for network in _blocked(config))
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


def _blocked(config: NetworkConfig) -> Iterable[IPv4Network]:
    return collapse_addresses((*_NEVER_PUBLIC, config.subnet, config.uplink_network))


def _exceptions(config: NetworkConfig) -> list[str]:
    """List private destinations that stay reachable: proxy, and resolvers if egress is open."""
    if config.egress is Egress.NONE:
        return []
    rules = []
    if config.proxy is not None:
        rules.append(f"ip daddr {config.proxy[0]} tcp dport {config.proxy[1]} accept")
    if config.egress is Egress.OPEN and config.dns:
        servers = ", ".join(str(address) for address in config.dns)
        rules.append(f"ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept")
    return rules


def _gateway_proxy_rule(config: NetworkConfig) -> str:
    """Permit a proxy that listens on the gateway itself."""
    if config.egress is Egress.NONE or config.proxy is None or config.proxy[0] != config.gateway:
        return ""
    return f'iifname "{BRIDGE}" ip daddr {config.gateway} tcp dport {config.proxy[1]} accept'


def _elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f"elements = {{ {joined} }}" if joined else ""


def _lines(rules: Iterable[str]) -> str:
    return "\n        ".join(rules)
