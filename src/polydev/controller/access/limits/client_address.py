"""Find the client's address behind trusted proxies, and its network."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_IPV6_PREFIX_BITS = 64
"""One household or server usually owns a whole /64."""


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the client's address: `peer`, or the one that trusted proxies report.

    Each proxy appends the address it was called from to X-Forwarded-For. So the header is read from
    its end, and only as far as proxies are trusted: anyone can write the part before that.
    """
    hops = [peer, *reversed(",".join(forwarded_for).split(","))]
    source = peer
    for hop in hops:
        address = _parse_address(hop)
        if address is None:
            break
        source = str(address)
        if not any(address in network for network in trusted):
            break
    return source


def client_network(source: str) -> str:
    """Return the network to rate-limit: an IPv4 address or IPv6 /64."""
    address = _parse_address(source)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, _IPV6_PREFIX_BITS), strict=False))
    return source if address is None else str(address)


def _parse_address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if isinstance(mapped, IPv4Address) else address
