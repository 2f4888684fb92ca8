"""`doctor` finds changes to the VM network, and the suggested fix repairs them.

Each fault is caused in namespaces of the test, with common tools.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from wire import UID, WORLD, A, B, Surroundings, ip

from polydev.hostagent.network import (
    Attachment,
    Network,
    NetworkConfig,
    check_connectivity,
    connectivity,
)
from polydev.hostagent.settings import Egress
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

RUNNING = {A: UID, B: UID + 1}


@pytest.fixture
async def attached(network: Network) -> Attachment:
    """Machine A's attachment; B is attached too."""
    await network.attach(B, UID + 1)
    return await network.attach(A, UID)


def nft(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "netns", "exec", namespace, "nft", *arguments], check=True)


def sysctl(namespace: str, name: str, value: str) -> None:
    command = ["ip", "netns", "exec", namespace, "sysctl", "-qw", f"{name}={value}"]
    subprocess.run(command, check=True)


async def failed_findings(network: Network) -> dict[str, str]:
    """Return failed findings: name -> message. Each has a hint."""
    found = [it for it in await network.inspect(RUNNING) if not it.ok]
    assert all(it.hint for it in found)
    return {it.name: it.message for it in found}


async def test_intact_network_passes(network: Network, attached: Attachment) -> None:
    found = {it.name: it for it in await network.inspect(RUNNING)}
    assert all(it.ok for it in found.values()), found
    assert found.keys() == {"namespace", "bridge", "TAPs", "firewall", "uplink"}


async def test_detached_machines_leave_the_network_intact(
    network: Network, attached: Attachment
) -> None:
    await network.detach(B)
    assert await failed_findings(network) == {}


async def test_missing_namespace_is_found(network: Network, plan: NetworkConfig) -> None:
    namespaces.remove(plan.netns)
    [finding] = await network.inspect({})
    assert isinstance(finding, Finding)
    assert (finding.name, finding.ok) == ("namespace", False)
    assert plan.netns in finding.message
    assert "polydev up" in finding.hint


async def test_bridge_that_is_down_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    ip(surroundings.vm, "link", "set", "br0", "down")
    assert "is down" in (await failed_findings(network))["bridge"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_wrong_bridge_address_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    ip(surroundings.vm, "address", "flush", "dev", "br0")
    assert (await failed_findings(network))["bridge"].endswith(
        "no address instead of 192.168.100.1/24"
    )
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_disabled_forwarding_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    sysctl(surroundings.vm, "net.ipv4.ip_forward", "0")
    sysctl(surroundings.outer, "net.ipv4.ip_forward", "0")
    found = await failed_findings(network)
    assert "does not forward" in found["bridge"]
    assert "switched off" in found["uplink"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_flushed_rules_are_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    nft(surroundings.vm, "flush", "ruleset")
    assert "table bridge polydev is gone" in (await failed_findings(network))["firewall"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_changed_rules_are_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    nft(surroundings.vm, "insert", "rule", "inet", "polydev", "forward", "accept")
    assert "chain forward was changed" in (await failed_findings(network))["firewall"]
    await network.ensure()
    nft(surroundings.vm, "flush", "chain", "inet", "polydev", "egress")
    assert "chain egress was changed" in (await failed_findings(network))["firewall"]
    await network.ensure()
    nft(surroundings.vm, "add", "chain", "bridge", "polydev", "forward", "{ policy accept; }")
    assert (
        "bridge polydev: chain forward was changed" in (await failed_findings(network))["firewall"]
    )
    await network.ensure()
    nft(surroundings.vm, "add", "table", "ip", "other")
    assert await failed_findings(network) == {}, "a table without a hook does nothing"
    hook = "{ type filter hook forward priority 5; policy drop; }"
    nft(surroundings.vm, "add", "chain", "ip", "other", "drops", hook)
    assert "another program added table ip other" in (await failed_findings(network))["firewall"]


async def test_missing_sender_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    element = f'{{ "{attached.tap}" . {attached.mac} . {attached.address} }}'
    nft(surroundings.vm, "delete", "element", "bridge", "polydev", "senders", element)
    arguments = (await failed_findings(network))["firewall"]
    assert attached.tap in arguments
    assert "in set senders is missing" in arguments
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_missing_tap_names_its_machine(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    ip(surroundings.vm, "link", "del", attached.tap)
    [finding] = [it for it in await network.inspect(RUNNING) if it.name == "TAPs"]
    assert finding.vm_id == A
    assert f"{attached.tap} is gone" in finding.message
    assert f"polydev machine stop {A}" in finding.hint
    at_rest = [it for it in await network.inspect({B: UID + 1}) if it.name == "TAPs"]
    assert [it.ok for it in at_rest] == [True], "a stopped machine needs no TAP"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("link", "set", "{tap}", "nomaster"), "is not in br0"),
        (("link", "set", "{tap}", "down"), "is down"),
        (("neigh", "flush", "nud", "permanent", "dev", "br0"), "is not pinned to {mac}"),
    ],
)
async def test_changed_tap_is_repaired(
    network: Network,
    attached: Attachment,
    surroundings: Surroundings,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    names = {"tap": attached.tap, "mac": attached.mac}
    ip(surroundings.vm, *(word.format(**names) for word in arguments))
    message = (await failed_findings(network))["TAPs"]
    assert expected.format(**names) in message
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_port_without_isolation_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    link = ("link", "set", "dev", attached.tap)
    subprocess.run(["bridge", "-n", surroundings.vm, *link, "isolated", "off"], check=True)
    assert "isolated 0 instead of 1" in (await failed_findings(network))["TAPs"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_orphaned_tap_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings
) -> None:
    ip(surroundings.vm, "tuntap", "add", "pd77", "mode", "tap")
    assert "TAP pd77" in (await failed_findings(network))["orphans"]
    await network.sweep(RUNNING)
    assert await failed_findings(network) == {}


async def test_broken_uplink_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings, plan: NetworkConfig
) -> None:
    ip(surroundings.outer, "link", "set", plan.outer_uplink, "down")
    assert "is down" in (await failed_findings(network))["uplink"]
    await network.ensure()
    assert await failed_findings(network) == {}
    ip(surroundings.outer, "link", "del", plan.outer_uplink)
    assert "is missing" in (await failed_findings(network))["uplink"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_flushed_nat_is_found(
    network: Network, attached: Attachment, surroundings: Surroundings, plan: NetworkConfig
) -> None:
    nft(surroundings.outer, "flush", "table", "inet", plan.outer_table)
    assert "chain postrouting was changed" in (await failed_findings(network))["uplink"]
    nft(surroundings.outer, "delete", "table", "inet", plan.outer_table)
    assert f"table inet {plan.outer_table} is gone" in (await failed_findings(network))["uplink"]
    await network.ensure()
    assert await failed_findings(network) == {}


async def test_inspection_works_without_an_agent(
    network: Network, attached: Attachment, plan: NetworkConfig
) -> None:
    another = Network(plan)
    assert await failed_findings(another) == {}
    await another.close()


# -- only when it is asked for --------------------------------------------------------------------


async def test_connectivity_is_checked_at_the_outer_uplink(
    network: Network,
    surroundings: Surroundings,
    plan: NetworkConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxied = replace(plan, egress=Egress.PROXY, proxy=(IPv4Address(WORLD), 3128))
    [silent] = await asyncio.to_thread(check_connectivity, proxied)
    assert silent.ok is False
    assert f"The proxy {WORLD}:3128 does not answer" in silent.message
    with surroundings.listen_tcp(surroundings.world, WORLD, 3128):
        [answers] = await asyncio.to_thread(check_connectivity, proxied)
    assert answers.ok
    resolving = replace(plan, dns=(IPv4Address(WORLD),))
    [silent] = await asyncio.to_thread(check_connectivity, resolving)
    assert silent.ok is False
    assert "POLYDEV_DNS" in silent.hint
    monkeypatch.setattr(connectivity, "_LIMIT_S", 60)
    with surroundings.listen(surroundings.world, WORLD, 53) as resolver:
        asking = asyncio.create_task(asyncio.to_thread(check_connectivity, resolving))
        question, who = await asyncio.to_thread(resolver.recvfrom, 512)
        resolver.sendto(question[:2] + b"\x81\x80" + question[4:], who)
        [answers] = await asking
    assert answers.ok
