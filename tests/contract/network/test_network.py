"""Test the VM network against hostile machines.

Only the machines are fake: programs that hold TAPs open like VMMs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from wire import (
    ANY,
    ARP,
    GATEWAY,
    HOST,
    IP6,
    PORT,
    PRIVATE,
    UID,
    WORLD,
    A,
    Attach,
    B,
    FakeMachine,
    Surroundings,
    ethernet,
    ip,
    is_syn_ack,
    is_unreachable,
    kind_of,
    tagged,
    within,
)

from polydev.hostagent.network import Network, NetworkConfig, firewall
from polydev.hostagent.settings import Egress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


async def reconfigure(network: Network, plan: NetworkConfig, **changes: object) -> None:
    """Set the same network up with another policy, as a restarted agent would."""
    other = Network(replace(plan, **changes))  # type: ignore[arg-type]
    await other.ensure()
    await other.close()


async def test_machine_reaches_the_outside_through_nat(
    surroundings: Surroundings, attach: Attach
) -> None:
    machine = await attach(A)
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        data, source = world.recvfrom(100)
        assert (data, source[0]) == (b"hello", HOST)
        world.sendto(b"answer", source)
        assert b"answer" in machine.expect(lambda frame: b"answer" in frame)[-1]


async def test_gateway_answers_arp_and_echo(attach: Attach) -> None:
    machine = await attach(A)
    machine.send(machine.arp(GATEWAY))
    assert machine.expect(lambda frame: kind_of(frame) == ARP)
    assert machine.fence() == []


# -- forged addresses ------------------------------------------------------------------------------


async def test_forged_frames_are_dropped(surroundings: Surroundings, attach: Attach) -> None:
    machine, other = await attach(A), await attach(B)
    honest = machine.udp(WORLD, PORT, b"forged")
    forged = {
        "a foreign MAC": machine.udp(WORLD, PORT, b"forged", mac="02:01:c0:a8:64:99"),
        "the neighbour's MAC": machine.udp(WORLD, PORT, b"forged", mac=other.mac),
        "a foreign address": machine.udp(WORLD, PORT, b"forged", source="192.168.100.99"),
        "the neighbour's address": machine.udp(WORLD, PORT, b"forged", source=other.address),
        "the gateway's address": machine.udp(WORLD, PORT, b"forged", source=GATEWAY),
        "both of the neighbour's": machine.udp(
            WORLD, PORT, b"forged", source=other.address, mac=other.mac
        ),
        "a VLAN tag": tagged(honest),
        "a priority tag": tagged(honest, 0),
        "IPv6": ethernet("33:33:00:00:00:01", machine.mac, IP6, honest[14:]),
        "another protocol": ethernet("ff:ff:ff:ff:ff:ff", machine.mac, 0x88CC, honest[14:]),
        "a frame the bridge hands up unfiltered": machine.udp(
            WORLD, PORT, b"forged", to_mac="01:80:c2:00:00:0e"
        ),
        "a broadcast": machine.udp(WORLD, PORT, b"forged", to_mac="ff:ff:ff:ff:ff:ff"),
        "a frame cut short": honest[:20],
    }
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        for what, frame in forged.items():
            machine.send(frame)
            machine.fence()
            machine.send(machine.udp(WORLD, PORT, what.encode()))
            assert world.recv(100) == what.encode()
    assert other.fence() == []


async def test_forged_arp_is_ignored(surroundings: Surroundings, attach: Attach) -> None:
    machine, other = await attach(A), await attach(B)
    before = ip(surroundings.vm, "neigh", "show")
    for frame in (
        machine.arp(GATEWAY, sender=other.address),
        machine.arp(GATEWAY, sender_mac=other.mac),
        machine.arp(GATEWAY, mac=other.mac),
        machine.arp(other.address, operation=2, sender=other.address),
        machine.arp(machine.address, operation=2, sender=GATEWAY),
    ):
        machine.send(frame)
        assert machine.fence() == []
    assert ip(surroundings.vm, "neigh", "show") == before
    assert other.fence() == []


# -- unreachable destinations ----------------------------------------------------------------------


async def test_machines_do_not_reach_each_other(attach: Attach) -> None:
    machine, other = await attach(A), await attach(B)
    machine.send(machine.udp(other.address, PORT, b"x", to_mac=other.mac))
    machine.send(machine.udp(other.address, PORT, b"x"))
    machine.send(machine.udp("192.168.100.255", PORT, b"x", to_mac="ff:ff:ff:ff:ff:ff"))
    machine.send(machine.arp(other.address))
    machine.fence()
    assert other.fence() == []


async def test_machines_do_not_see_frames_for_others(
    surroundings: Surroundings, attach: Attach
) -> None:
    machine, other = await attach(A), await attach(B)
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        _, source = world.recvfrom(100)
        world.sendto(b"answer", source)
        machine.expect(lambda frame: b"answer" in frame)
    assert other.fence() == []


async def test_vm_namespace_answers_nothing_but_echo(
    surroundings: Surroundings, attach: Attach, plan: NetworkConfig
) -> None:
    machine = await attach(A)
    inner = str(plan.uplink_inner_address)
    with (
        surroundings.listen_tcp(surroundings.vm, ANY, 53),
        surroundings.listen(surroundings.vm, ANY, PORT) as listener,
    ):
        for address in (GATEWAY, inner, "127.0.0.1"):
            machine.send(machine.syn(address, 53))
            machine.send(machine.udp(address, PORT, b"x"))
            machine.send(machine.udp(address, PORT, b"x", to_mac="01:80:c2:00:00:0e"))
            assert not any(map(is_syn_ack, machine.fence()))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
    machine.send(machine.arp(inner))
    assert machine.fence() == []


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_and_metadata_addresses_are_refused_immediately(
    surroundings: Surroundings, attach: Attach, address: str
) -> None:
    machine = await attach(A)
    with surroundings.listen(surroundings.world, ANY, PORT) as world:
        machine.send(machine.udp(address, PORT, b"private"))
        assert is_unreachable(machine.expect(is_unreachable)[-1])
        machine.send(machine.udp(WORLD, PORT, b"public"))
        assert world.recv(100) == b"public"


async def test_host_addresses_are_unreachable(
    surroundings: Surroundings, attach: Attach, plan: NetworkConfig
) -> None:
    machine = await attach(A)
    with (
        surroundings.listen(surroundings.outer, ANY, PORT) as host,
        surroundings.listen(surroundings.world, WORLD, PORT) as world,
    ):
        for address in (HOST, str(plan.uplink_outer_address)):
            machine.send(machine.udp(address, PORT, b"host"))
        machine.send(machine.udp(WORLD, PORT, b"public"))
        assert world.recv(100) == b"public"
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(100)


async def test_connections_from_outside_are_refused(
    surroundings: Surroundings, attach: Attach
) -> None:
    machine = await attach(A)
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        world.sendto(b"unasked", (machine.address, PORT))
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        _, source = world.recvfrom(100)
        world.sendto(b"answer", source)
        seen = machine.expect(lambda frame: b"answer" in frame)
    assert not any(b"unasked" in frame for frame in seen)


async def test_one_machine_cannot_exhaust_the_connection_table(
    surroundings: Surroundings, attach: Attach
) -> None:
    machine, other = await attach(A), await attach(B)
    limit = firewall.CONNECTIONS_PER_MACHINE
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        for number in range(limit + 100):
            machine.send(machine.udp(WORLD, PORT, b"flood", source_port=str(10_000 + number)))
            if number < limit:  # one at a time: a busy kernel drops packets of a long queue
                assert world.recv(100) == b"flood"
        other.send(other.udp(WORLD, PORT, b"last"))
        assert world.recv(100) == b"last"


async def test_compromised_vmm_opens_no_connections(
    surroundings: Surroundings, network: Network
) -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for address in ('127.0.0.1', '198.51.100.1'):\n"
        "    try: s.sendto(b'x', (address, 7000)); print('sent')\n"
        "    except PermissionError: print('refused')\n"
    )
    command = [sys.executable, "-c", script]
    done = within(
        surroundings.vm,
        lambda: subprocess.run(command, user=UID, capture_output=True, text=True, check=True),
    )
    assert done.stdout.split() == ["refused", "refused"]


# -- egress policies ------------------------------------------------------------------------------


async def test_no_traffic_leaves_without_egress(
    surroundings: Surroundings, network: Network, plan: NetworkConfig, attach: Attach
) -> None:
    machine = await attach(A)
    await reconfigure(network, plan, egress=Egress.NONE)
    machine.send(machine.udp(WORLD, PORT, b"x"))
    assert is_unreachable(machine.expect(is_unreachable)[-1])


@pytest.mark.parametrize(("holder", "address"), [("world", PRIVATE[0]), ("outer", HOST)])
async def test_only_the_configured_proxy_is_reachable(
    surroundings: Surroundings,
    network: Network,
    plan: NetworkConfig,
    attach: Attach,
    holder: str,
    address: str,
) -> None:
    machine = await attach(A)
    proxy = (IPv4Address(address), 3128)
    await reconfigure(network, plan, egress=Egress.PROXY, proxy=proxy)
    netns = getattr(surroundings, holder)
    with surroundings.listen_tcp(netns, address, 3128), surroundings.listen_tcp(netns, address, 22):
        machine.send(machine.syn(address, 3128))
        assert machine.expect(is_syn_ack)
        for frame in (
            machine.syn(address, 22),
            machine.udp(WORLD, PORT, b"x"),
            machine.udp("8.8.8.8", 53, b"x"),
        ):
            machine.send(frame)
            assert is_unreachable(machine.expect(lambda f: is_unreachable(f) or is_syn_ack(f))[-1])


async def test_configured_private_resolver_is_reachable(
    surroundings: Surroundings, network: Network, plan: NetworkConfig, attach: Attach
) -> None:
    machine = await attach(A)
    await reconfigure(network, plan, dns=(IPv4Address(PRIVATE[0]),))
    with surroundings.listen(surroundings.world, PRIVATE[0], 53) as resolver:
        machine.send(machine.udp(PRIVATE[0], 53, b"query"))
        assert resolver.recv(100) == b"query"


async def test_network_works_internally_without_uplink(
    surroundings: Surroundings, plan: NetworkConfig
) -> None:
    network = Network(replace(plan, has_uplink=False))
    await network.ensure()
    machine = FakeMachine(surroundings.vm, await network.attach(A, UID))
    machine.settle()
    machine.close()
    assert "uplink0" not in ip(surroundings.vm, "link")
    await network.remove()
