"""The VM network keeps its promises to and against machines that send whatever they like.

Everything is the real thing but the machines: programs that hold TAPs open, as VMMs do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from wire import (
    ANY,
    ARP,
    GATEWAY,
    HOST,
    IP6,
    PRIVATE,
    WORLD,
    FakeMachine,
    Surroundings,
    ethernet,
    ip,
    is_syn_ack,
    is_unreachable,
    kind_of,
    run_inside,
    surroundings,
    tagged,
    within,
)

import polydev
from polydev.errors import ChannelLost, NetworkFailed, NoCapacity
from polydev.hostd.network import Network, NetworkPlan, dial, firewall, netns
from polydev.settings import Egress, HostSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

A, B, C = (f"vm-00000000-0000-4000-8000-00000000000{n}" for n in "abc")
UID = 1_900_000_001
PORT = 7000
Attach = Callable[[str], Awaitable[FakeMachine]]


@pytest.fixture
def here() -> Iterator[Surroundings]:
    with surroundings() as made:
        yield made


@pytest.fixture
def plan(here: Surroundings, tmp_path: Path) -> NetworkPlan:
    settings = HostSettings(netns=here.vm, uplink_netns=here.outer, state_dir=tmp_path)
    return NetworkPlan.from_settings(settings)


@pytest.fixture
async def network(plan: NetworkPlan) -> AsyncIterator[Network]:
    made = Network(plan)
    await made.ensure()
    yield made
    await made.remove()


@pytest.fixture
async def attach(network: Network, here: Surroundings) -> AsyncIterator[Attach]:
    machines: list[FakeMachine] = []

    async def attached(vm_id: str) -> FakeMachine:
        machine = FakeMachine(here.vm, await network.attach(vm_id, UID))
        machines.append(machine)
        machine.settle()
        return machine

    yield attached
    for machine in machines:
        machine.close()


def refuse(*_: object) -> None:
    raise OSError("refused by the test")


async def reshaped(network: Network, plan: NetworkPlan, **changes: object) -> None:
    """Put the same network together with another policy, as a restarted agent would."""
    other = Network(replace(plan, **changes))  # type: ignore[arg-type]
    await other.ensure()
    await other.close()


# -- what a machine may do ------------------------------------------------------------------------


async def test_a_machine_talks_to_the_outside_through_nat(
    here: Surroundings, attach: Attach
) -> None:
    machine = await attach(A)
    with here.listen(here.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        data, source = world.recvfrom(100)
        assert (data, source[0]) == (b"hello", HOST)
        world.sendto(b"answer", source)
        assert b"answer" in machine.expect(lambda frame: b"answer" in frame)[-1]


async def test_the_gateway_answers_arp_and_echo(attach: Attach) -> None:
    machine = await attach(A)
    machine.send(machine.arp(GATEWAY))
    assert machine.expect(lambda frame: kind_of(frame) == ARP)
    assert machine.fence() == []


# -- what a machine may not claim -----------------------------------------------------------------


async def test_forged_frames_go_nowhere(here: Surroundings, attach: Attach) -> None:
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
    with here.listen(here.world, WORLD, PORT) as world:
        for what, frame in forged.items():
            machine.send(frame)
            machine.fence()
            machine.send(machine.udp(WORLD, PORT, what.encode()))
            assert world.recv(100) == what.encode()
    assert other.fence() == []


async def test_forged_arp_is_neither_answered_nor_believed(
    here: Surroundings, attach: Attach
) -> None:
    machine, other = await attach(A), await attach(B)
    before = ip(here.vm, "neigh", "show")
    for frame in (
        machine.arp(GATEWAY, sender=other.address),
        machine.arp(GATEWAY, sender_mac=other.mac),
        machine.arp(GATEWAY, mac=other.mac),
        machine.arp(other.address, operation=2, sender=other.address),
        machine.arp(machine.address, operation=2, sender=GATEWAY),
    ):
        machine.send(frame)
        assert machine.fence() == []
    assert ip(here.vm, "neigh", "show") == before
    assert other.fence() == []


# -- what a machine may not reach -----------------------------------------------------------------


async def test_machines_do_not_reach_each_other(attach: Attach) -> None:
    machine, other = await attach(A), await attach(B)
    machine.send(machine.udp(other.address, PORT, b"x", to_mac=other.mac))
    machine.send(machine.udp(other.address, PORT, b"x"))
    machine.send(machine.udp("192.168.100.255", PORT, b"x", to_mac="ff:ff:ff:ff:ff:ff"))
    machine.send(machine.arp(other.address))
    machine.fence()
    assert other.fence() == []


async def test_machines_do_not_see_what_others_are_sent(here: Surroundings, attach: Attach) -> None:
    machine, other = await attach(A), await attach(B)
    with here.listen(here.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        _, source = world.recvfrom(100)
        world.sendto(b"answer", source)
        machine.expect(lambda frame: b"answer" in frame)
    assert other.fence() == []


async def test_the_vm_namespace_answers_nothing_but_echo(
    here: Surroundings, attach: Attach, plan: NetworkPlan
) -> None:
    machine = await attach(A)
    inner = str(plan.uplink_inner_address)
    with (
        here.listen_tcp(here.vm, ANY, 53),
        here.listen(here.vm, ANY, PORT) as listener,
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
async def test_private_and_metadata_addresses_arerefused_at_once(
    here: Surroundings, attach: Attach, address: str
) -> None:
    machine = await attach(A)
    with here.listen(here.world, ANY, PORT) as world:
        machine.send(machine.udp(address, PORT, b"private"))
        assert is_unreachable(machine.expect(is_unreachable)[-1])
        machine.send(machine.udp(WORLD, PORT, b"public"))
        assert world.recv(100) == b"public"


async def test_the_hosts_own_addresses_are_out_of_reach(
    here: Surroundings, attach: Attach, plan: NetworkPlan
) -> None:
    machine = await attach(A)
    with (
        here.listen(here.outer, ANY, PORT) as host,
        here.listen(here.world, WORLD, PORT) as world,
    ):
        for address in (HOST, str(plan.uplink_outer_address)):
            machine.send(machine.udp(address, PORT, b"host"))
        machine.send(machine.udp(WORLD, PORT, b"public"))
        assert world.recv(100) == b"public"
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(100)


async def test_nobody_outside_opens_a_connection_to_a_machine(
    here: Surroundings, attach: Attach
) -> None:
    machine = await attach(A)
    with here.listen(here.world, WORLD, PORT) as world:
        world.sendto(b"unasked", (machine.address, PORT))
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        _, source = world.recvfrom(100)
        world.sendto(b"answer", source)
        seen = machine.expect(lambda frame: b"answer" in frame)
    assert not any(b"unasked" in frame for frame in seen)


async def test_one_machine_cannot_use_up_the_connection_table(
    here: Surroundings, attach: Attach
) -> None:
    machine, other = await attach(A), await attach(B)
    limit = firewall.CONNECTIONS_PER_MACHINE
    with here.listen(here.world, WORLD, PORT) as world:
        for port in range(10_000, 10_000 + limit + 100):
            machine.send(machine.udp(WORLD, PORT, b"flood", source_port=str(port)))
        other.send(other.udp(WORLD, PORT, b"last"))
        arrived = 0
        while world.recv(100) != b"last":
            arrived += 1
    assert arrived == limit


async def test_a_vmm_that_was_taken_over_opens_no_connections(
    here: Surroundings, network: Network
) -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for address in ('127.0.0.1', '198.51.100.1'):\n"
        "    try: s.sendto(b'x', (address, 7000)); print('sent')\n"
        "    except PermissionError: print('refused')\n"
    )
    command = [sys.executable, "-c", script]
    done = within(
        here.vm,
        lambda: subprocess.run(command, user=UID, capture_output=True, text=True, check=True),
    )
    assert done.stdout.split() == ["refused", "refused"]


# -- egress policies ------------------------------------------------------------------------------


async def test_without_egress_nothing_leaves(
    here: Surroundings, network: Network, plan: NetworkPlan, attach: Attach
) -> None:
    machine = await attach(A)
    await reshaped(network, plan, egress=Egress.NONE)
    machine.send(machine.udp(WORLD, PORT, b"x"))
    assert is_unreachable(machine.expect(is_unreachable)[-1])


@pytest.mark.parametrize(("holder", "address"), [("world", PRIVATE[0]), ("outer", HOST)])
async def test_with_a_proxy_only_the_proxy_is_reached(
    here: Surroundings,
    network: Network,
    plan: NetworkPlan,
    attach: Attach,
    holder: str,
    address: str,
) -> None:
    machine = await attach(A)
    proxy = (IPv4Address(address), 3128)
    await reshaped(network, plan, egress=Egress.PROXY, proxy=proxy)
    place = getattr(here, holder)
    with here.listen_tcp(place, address, 3128), here.listen_tcp(place, address, 22):
        machine.send(machine.syn(address, 3128))
        assert machine.expect(is_syn_ack)
        for frame in (
            machine.syn(address, 22),
            machine.udp(WORLD, PORT, b"x"),
            machine.udp("8.8.8.8", 53, b"x"),
        ):
            machine.send(frame)
            assert is_unreachable(machine.expect(lambda f: is_unreachable(f) or is_syn_ack(f))[-1])


async def test_a_private_resolver_that_was_set_is_reached(
    here: Surroundings, network: Network, plan: NetworkPlan, attach: Attach
) -> None:
    machine = await attach(A)
    await reshaped(network, plan, dns=(IPv4Address(PRIVATE[0]),))
    with here.listen(here.world, PRIVATE[0], 53) as resolver:
        machine.send(machine.udp(PRIVATE[0], 53, b"query"))
        assert resolver.recv(100) == b"query"


async def test_a_network_without_uplink_works_within(here: Surroundings, plan: NetworkPlan) -> None:
    network = Network(replace(plan, has_uplink=False))
    await network.ensure()
    machine = FakeMachine(here.vm, await network.attach(A, UID))
    machine.settle()
    machine.close()
    assert "uplink0" not in ip(here.vm, "link")
    await network.remove()


# -- life -----------------------------------------------------------------------------------------


async def test_putting_it_together_again_disturbs_no_machine(
    here: Surroundings, network: Network, attach: Attach
) -> None:
    machine = await attach(A)
    before = await network.state()
    with here.listen(here.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"one"))
        _, source = world.recvfrom(100)
        await network.ensure()
        world.sendto(b"answer", source)
        machine.expect(lambda frame: b"answer" in frame)
        machine.send(machine.udp(WORLD, PORT, b"two"))
        assert world.recvfrom(100) == (b"two", source)
    assert await network.state() == before


async def test_a_machine_keeps_its_place(
    network: Network, plan: NetworkPlan, attach: Attach
) -> None:
    machine = await attach(A)
    again = Network(plan)
    assert await network.attach(A, UID) == machine.place
    assert await again.attach(A, UID) == machine.place
    assert (await again.attach(B, UID)).address == "192.168.100.6"
    await again.close()
    assert machine.fence() == []


async def test_a_detached_machine_leaves_nothing(
    here: Surroundings, network: Network, attach: Attach
) -> None:
    machine = await attach(A)
    await network.detach(A)
    await network.detach(A)
    state = await network.state()
    assert (state.taps, state.addresses, state.firewall) == ((), {}, ())
    assert machine.address not in ip(here.vm, "neigh", "show")
    assert machine.mac not in run_inside(here.vm, "bridge", "fdb")


async def test_nobody_inherits_a_machines_connections(
    here: Surroundings, network: Network, attach: Attach, plan: NetworkPlan
) -> None:
    machine, neighbour = await attach(A), await attach(B)
    leases = plan.state_dir / "leases.json"
    with here.listen(here.world, WORLD, PORT) as world:
        world_of: dict[str, tuple[str, int]] = {}
        for sender in (machine, neighbour):
            sender.send(sender.udp(WORLD, PORT, sender.mac.encode()))
            data, world_of[sender.mac] = world.recvfrom(100)
            assert data == sender.mac.encode()
        await network.detach(A)
        leases.write_text(leases.read_text().replace("192.168.100.7", "192.168.100.5"))
        await network.close()
        heir = await attach(C)
        assert heir.address == machine.address
        world.sendto(b"for the one before", world_of[machine.mac])
        world.sendto(b"for the neighbour", world_of[neighbour.mac])
        neighbour.expect(lambda frame: b"for the neighbour" in frame)
        assert heir.fence() == []


async def test_a_sweep_removes_what_belongs_to_nobody(here: Surroundings, network: Network) -> None:
    await network.attach(A, UID)
    gone = await network.attach(B, UID)
    lost_tap = await network.attach(C, UID)
    ip(here.vm, "link", "del", lost_tap.tap)
    ip(here.vm, "tuntap", "add", "pd77", "mode", "tap")
    element = firewall.Sender("pd78", "02:01:c0:a8:64:4e", "192.168.100.78")
    within(here.vm, lambda: firewall.load(firewall.with_sender(element)))
    await network.sweep({A})
    state = await network.state()
    assert list(state.addresses) == [A]
    assert state.taps == state.firewall == ("pd5",)
    assert gone.address not in ip(here.vm, "neigh", "show")


async def test_a_namespace_that_was_deleted_is_made_again(
    here: Surroundings, network: Network
) -> None:
    place = await network.attach(A, UID)
    netns.remove(here.vm)
    with pytest.raises(NetworkFailed):
        await network.attach(B, UID)
    await network.ensure()
    assert await network.attach(A, UID) == place
    assert (await network.state()).taps == (place.tap,)


async def test_an_attachment_cut_in_the_middle_is_undone(
    here: Surroundings, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.hostd.network.bridge.Links.point_to", refuse)
    with pytest.raises(NetworkFailed):
        await network.attach(A, UID)
    state = await network.state()
    assert (state.taps, state.addresses, state.firewall) == ((), {}, ())


async def test_a_failed_repeat_does_not_undo_a_machine_that_runs(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    await network.attach(A, UID)
    before = await network.state()
    monkeypatch.setattr("polydev.hostd.network.bridge.Links.point_to", refuse)
    with pytest.raises(NetworkFailed):
        await network.attach(A, UID)
    assert await network.state() == before


async def test_addresses_run_out_with_a_clear_error(here: Surroundings, plan: NetworkPlan) -> None:
    small = replace(
        plan,
        subnet=IPv4Network("192.168.100.0/29"),
        first_address=IPv4Address("192.168.100.4"),
    )
    network = Network(small)
    await network.ensure()
    for vm_id in (A, B, C):
        await network.attach(vm_id, UID)
    with pytest.raises(NoCapacity):
        await network.attach("vm-one-too-many", UID)
    await network.detach(B)
    assert (await network.attach("vm-one-too-many", UID)).address == "192.168.100.5"
    await network.remove()


async def test_removal_leaves_nothing(
    here: Surroundings, plan: NetworkPlan, tmp_path: Path
) -> None:
    def look() -> tuple[str, str, str]:
        return (
            ip(here.outer, "-o", "addr"),
            run_inside(here.outer, "nft", "list", "ruleset"),
            run_inside(here.outer, "sysctl", "net.ipv4.ip_forward"),
        )

    before = look()
    network = Network(plan)
    await network.ensure()
    await network.attach(A, UID)
    assert look() != before
    await network.detach(A)
    await network.remove()
    await network.remove()
    assert look() == before
    assert not netns.path_of(here.vm).exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_stale_outer_end_is_replaced(here: Surroundings, plan: NetworkPlan) -> None:
    ip(here.outer, "link", "add", plan.outer_uplink, "type", "veth", "peer", "name", "other")
    network = Network(plan)
    await network.ensure()
    assert "uplink0" in ip(here.vm, "link")
    assert "other" not in ip(here.outer, "link")
    await network.remove()


UNNAMED_UPLINK = """
import asyncio, sys
from pathlib import Path
from polydev.hostd.network import Network
from polydev.settings import HostSettings

async def main():
    settings = HostSettings(netns=sys.argv[1], state_dir=Path(sys.argv[2]))
    network = Network.from_settings(settings)
    await network.ensure()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await network.remove()

asyncio.run(main())
"""


async def test_without_a_named_namespace_the_uplink_ends_in_the_agents_own(
    here: Surroundings, plan: NetworkPlan, tmp_path: Path
) -> None:
    before = ip(here.outer, "-br", "link")
    command = ["nsenter", f"--net={netns.path_of(here.outer)}", sys.executable, "-c"]
    agent = subprocess.Popen(
        [*command, UNNAMED_UPLINK, here.vm, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(polydev.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready\n"
    assert plan.outer_uplink in ip(here.outer, "link")
    network = Network(plan)
    machine = FakeMachine(here.vm, await network.attach(A, UID))
    machine.settle()
    with here.listen(here.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        assert world.recv(100) == b"hello"
    machine.close()
    await network.detach(A)
    await network.close()
    agent.communicate("end\n", timeout=60)
    assert agent.returncode == 0
    assert ip(here.outer, "-br", "link") == before
    assert run_inside(here.outer, "sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


# -- dialling in ----------------------------------------------------------------------------------


async def test_dialling_reaches_the_namespaces_loopback_and_changes_no_thread(
    here: Surroundings, network: Network
) -> None:
    own = Path("/proc/self/ns/net").readlink()
    with here.listen_tcp(here.vm, "127.0.0.1", 22005) as listener:
        sock = await dial(here.vm, "127.0.0.1", 22005)
        accepted, _ = listener.accept()
        with sock, contextlib.closing(accepted):
            assert sock.getblocking() is False
            sock.send(b"x")
            assert accepted.recv(1) == b"x"
    assert Path("/proc/thread-self/ns/net").readlink() == own
    with pytest.raises(OSError, match="refused"), socket.socket() as outside:
        outside.connect(("127.0.0.1", 22005))


async def test_dialling_says_when_nobody_answers(here: Surroundings, network: Network) -> None:
    with pytest.raises(ChannelLost):
        await dial(here.vm, "127.0.0.1", 22005)
    with pytest.raises(NetworkFailed):
        await dial("pdt-no-such-namespace", "127.0.0.1", 22005)
