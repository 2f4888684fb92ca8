"""Connectivity check of the machines' resolvers or proxy.

It runs at the uplink's outer end, where machines' packets come out: the VM namespace lets only
machines send. Only `polydev doctor --network` calls it.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

from polydev.hostagent.network.network_config import NetworkConfig
from polydev.hostagent.settings import Egress
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding
from polydev.shared.hints import Hint

_LIMIT_S = 4.0
_ROOT_NS = b"\0" + struct.pack("!HH", 2, 1)
"""A query that every resolver can answer: the root's name servers (RFC 1035)."""


def check_connectivity(config: NetworkConfig) -> list[Finding]:
    """Query resolvers or proxy. Blocking: seconds for each that does not answer."""
    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(_run_in_outer, config, lambda: list(_check(config))).result()


def _run_in_outer(config: NetworkConfig, call: Callable[[], list[Finding]]) -> list[Finding]:
    if config.uplink_netns is not None:
        namespaces.enter(namespaces.path_of(config.uplink_netns))
    return call()


def _check(config: NetworkConfig) -> Iterator[Finding]:
    if config.egress is Egress.NONE or not config.has_uplink:
        yield Finding("outside", True, "Machines have no outside access, as configured")
    if config.egress is Egress.PROXY and config.proxy is not None:
        yield _proxy(*config.proxy)
    if config.egress is Egress.OPEN and config.has_uplink:
        yield from (_resolver(address) for address in config.dns)


def _proxy(address: IPv4Address, port: int) -> Finding:
    try:
        socket.create_connection((str(address), port), _LIMIT_S).close()
    except OSError as error:
        message = f"The proxy {address}:{port} does not answer: {error}"
        return Finding("outside", False, message, "Start it, or check POLYDEV_EGRESS_PROXY")
    return Finding("outside", True, f"The proxy {address}:{port} answers")


def _resolver(address: IPv4Address) -> Finding:
    number = secrets.token_bytes(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(_LIMIT_S)
        try:
            query.connect((str(address), 53))
            query.send(number + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + _ROOT_NS)
            answered = query.recv(512)[:2] == number
        except OSError as error:
            message = f"The resolver {address} does not answer: {error}"
            hint = Hint.SET_DNS.text()
            return Finding("outside", False, message, hint)
    return Finding("outside", answered, f"The resolver {address} answers")
