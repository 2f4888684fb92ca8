"""Asks what machines need outside: their resolvers, or their proxy.

From the uplink's outer side, where a machine's packets come out: the VM namespace itself lets
nobody but machines send. `polydev doctor --network` calls it; nothing else sends anything.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

from polydev.hostagent.network.network_config import NetworkPlan
from polydev.hostagent.settings import Egress
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding

_LIMIT_S = 4.0
_ROOT_NS = b"\0" + struct.pack("!HH", 2, 1)
"""A question that every resolver knows the answer to: the name servers of the root (RFC 1035)."""


def reach_outside(plan: NetworkPlan) -> list[Finding]:
    """What answers and what does not. Blocking: seconds for each that does not."""
    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(_in_outer, plan, lambda: list(_ask(plan))).result()


def _in_outer(plan: NetworkPlan, call: Callable[[], list[Finding]]) -> list[Finding]:
    if plan.uplink_netns is not None:
        namespaces.enter(namespaces.path_of(plan.uplink_netns))
    return call()


def _ask(plan: NetworkPlan) -> Iterator[Finding]:
    if plan.egress is Egress.NONE or not plan.has_uplink:
        yield Finding("outside", True, "Machines reach nothing outside, as the settings say")
    if plan.egress is Egress.PROXY and plan.proxy is not None:
        yield _proxy(*plan.proxy)
    if plan.egress is Egress.OPEN and plan.has_uplink:
        yield from (_resolver(address) for address in plan.dns)


def _proxy(address: IPv4Address, port: int) -> Finding:
    try:
        socket.create_connection((str(address), port), _LIMIT_S).close()
    except OSError as error:
        words = f"The proxy {address}:{port} does not answer: {error}"
        return Finding("outside", False, words, "Start it, or see POLYDEV_EGRESS_PROXY")
    return Finding("outside", True, f"The proxy {address}:{port} answers")


def _resolver(address: IPv4Address) -> Finding:
    number = secrets.token_bytes(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_LIMIT_S)
        try:
            asking.connect((str(address), 53))
            asking.send(number + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + _ROOT_NS)
            answered = asking.recv(512)[:2] == number
        except OSError as error:
            words = f"The resolver {address} does not answer: {error}"
            hint = "Set POLYDEV_DNS to one that this host reaches; machines can name nothing else"
            return Finding("outside", False, words, hint)
    return Finding("outside", answered, f"The resolver {address} answers")
