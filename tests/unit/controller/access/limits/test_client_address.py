"""Test the client's address behind trusted and untrusted proxies."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from polydev.controller.access.limits.client_address import client_address, client_network

NEAR = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::1", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_client_is_the_address_before_the_last_trusted_proxy(
    peer: str, forwarded: list[str], source: str
) -> None:
    assert client_address(peer, forwarded, NEAR) == source


def test_untrusted_proxies_are_ignored() -> None:
    assert client_address("127.0.0.1", ["203.0.113.9"], ()) == "127.0.0.1"


def test_ipv6_prefix_is_one_network() -> None:
    assert client_network("2001:db8:1:2::5") == client_network("2001:db8:1:2:ffff::1")
    assert client_network("2001:db8:1:2::5") != client_network("2001:db8:1:3::5")
    assert client_network("192.0.2.1") != client_network("192.0.2.2")
    assert client_network("::ffff:192.0.2.1") == client_network("192.0.2.1")
