"""Test set-up, repair, removal and dialling of the VM network.

Only the machines are fake: programs that hold TAPs open like VMMs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from wire import (
    PORT,
    UID,
    WORLD,
    A,
    Attach,
    B,
    C,
    FakeMachine,
    Surroundings,
    ip,
    run_inside,
    within,
)

import polydev
from polydev.hostagent.network import Network, NetworkConfig, dial, firewall
from polydev.hostagent.system import namespaces
from polydev.shared.errors import ChannelLost, NetworkFailed, NoCapacity

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def refuse(*_: object) -> None:
    raise OSError("refused by the test")


async def test_ensure_disturbs_no_machine(
    surroundings: Surroundings, network: Network, attach: Attach
) -> None:
    machine = await attach(A)
    before = await network.state()
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"one"))
        _, source = world.recvfrom(100)
        await network.ensure()
        world.sendto(b"answer", source)
        machine.expect(lambda frame: b"answer" in frame)
        machine.send(machine.udp(WORLD, PORT, b"two"))
        assert world.recvfrom(100) == (b"two", source)
    assert await network.state() == before


async def test_machine_keeps_its_address(
    network: Network, plan: NetworkConfig, attach: Attach
) -> None:
    machine = await attach(A)
    again = Network(plan)
    assert await network.attach(A, UID) == machine.attachment
    assert await again.attach(A, UID) == machine.attachment
    assert (await again.attach(B, UID)).address == "192.168.100.6"
    await again.close()
    assert machine.fence() == []


async def test_detached_machine_leaves_nothing(
    surroundings: Surroundings, network: Network, attach: Attach
) -> None:
    machine = await attach(A)
    await network.detach(A)
    await network.detach(A)
    state = await network.state()
    assert (state.taps, state.addresses, state.firewall) == ((), {}, ())
    assert machine.address not in ip(surroundings.vm, "neigh", "show")
    assert machine.mac not in run_inside(surroundings.vm, "bridge", "fdb")


async def test_connections_are_not_inherited(
    surroundings: Surroundings, network: Network, attach: Attach, plan: NetworkConfig
) -> None:
    machine, neighbour = await attach(A), await attach(B)
    leases = plan.state_dir / "leases.json"
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
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


async def test_sweep_removes_orphans(surroundings: Surroundings, network: Network) -> None:
    await network.attach(A, UID)
    gone = await network.attach(B, UID)
    lost_tap = await network.attach(C, UID)
    ip(surroundings.vm, "link", "del", lost_tap.tap)
    ip(surroundings.vm, "tuntap", "add", "pd77", "mode", "tap")
    element = firewall.Sender("pd78", "02:01:c0:a8:64:4e", "192.168.100.78")
    within(surroundings.vm, lambda: firewall.load(firewall.allow_sender(element)))
    await network.sweep({A})
    state = await network.state()
    assert list(state.addresses) == [A]
    assert state.taps == state.firewall == ("pd5",)
    assert gone.address not in ip(surroundings.vm, "neigh", "show")


async def test_deleted_namespace_is_recreated(surroundings: Surroundings, network: Network) -> None:
    attachment = await network.attach(A, UID)
    namespaces.remove(surroundings.vm)
    with pytest.raises(NetworkFailed):
        await network.attach(B, UID)
    await network.ensure()
    assert await network.attach(A, UID) == attachment
    assert (await network.state()).taps == (attachment.tap,)


async def test_failed_attach_is_reverted(
    surroundings: Surroundings, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.hostagent.network.bridge.Links.pin_address", refuse)
    with pytest.raises(NetworkFailed):
        await network.attach(A, UID)
    state = await network.state()
    assert (state.taps, state.addresses, state.firewall) == ((), {}, ())


async def test_failed_reattach_keeps_a_running_machine(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    await network.attach(A, UID)
    before = await network.state()
    monkeypatch.setattr("polydev.hostagent.network.bridge.Links.pin_address", refuse)
    with pytest.raises(NetworkFailed):
        await network.attach(A, UID)
    assert await network.state() == before


async def test_exhausted_addresses_are_a_clear_error(
    surroundings: Surroundings, plan: NetworkConfig
) -> None:
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
    surroundings: Surroundings, plan: NetworkConfig, tmp_path: Path
) -> None:
    def uplink_state() -> tuple[str, str, str]:
        return (
            ip(surroundings.outer, "-o", "addr"),
            run_inside(surroundings.outer, "nft", "list", "ruleset"),
            run_inside(surroundings.outer, "sysctl", "net.ipv4.ip_forward"),
        )

    before = uplink_state()
    network = Network(plan)
    await network.ensure()
    await network.attach(A, UID)
    assert uplink_state() != before
    await network.detach(A)
    await network.remove()
    await network.remove()
    assert uplink_state() == before
    assert not namespaces.path_of(surroundings.vm).exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_stale_outer_interface_is_replaced(
    surroundings: Surroundings, plan: NetworkConfig
) -> None:
    uplink = plan.outer_uplink
    ip(surroundings.outer, "link", "add", uplink, "type", "veth", "peer", "name", "other")
    network = Network(plan)
    await network.ensure()
    assert "uplink0" in ip(surroundings.vm, "link")
    assert "other" not in ip(surroundings.outer, "link")
    await network.remove()


UNNAMED_UPLINK = """
import asyncio, sys
from pathlib import Path
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings

async def main():
    settings = HostSettings(netns=sys.argv[1], state_dir=Path(sys.argv[2]))
    network = Network.from_settings(settings)
    await network.ensure()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await network.remove()

asyncio.run(main())
"""


async def test_uplink_ends_in_agent_namespace_by_default(
    surroundings: Surroundings, plan: NetworkConfig, tmp_path: Path
) -> None:
    before = ip(surroundings.outer, "-br", "link")
    command = ["nsenter", f"--net={namespaces.path_of(surroundings.outer)}", sys.executable, "-c"]
    agent = subprocess.Popen(
        [*command, UNNAMED_UPLINK, surroundings.vm, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(polydev.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready\n"
    assert plan.outer_uplink in ip(surroundings.outer, "link")
    network = Network(plan)
    machine = FakeMachine(surroundings.vm, await network.attach(A, UID))
    machine.settle()
    with surroundings.listen(surroundings.world, WORLD, PORT) as world:
        machine.send(machine.udp(WORLD, PORT, b"hello"))
        assert world.recv(100) == b"hello"
    machine.close()
    await network.detach(A)
    await network.close()
    agent.communicate("end\n", timeout=60)
    assert agent.returncode == 0
    assert ip(surroundings.outer, "-br", "link") == before
    assert run_inside(surroundings.outer, "sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


# -- dialling in ----------------------------------------------------------------------------------


async def test_dial_reaches_the_namespaces_loopback(
    surroundings: Surroundings, network: Network
) -> None:
    own = Path("/proc/self/ns/net").readlink()
    with surroundings.listen_tcp(surroundings.vm, "127.0.0.1", 22005) as listener:
        sock = await dial(surroundings.vm, "127.0.0.1", 22005)
        accepted, _ = listener.accept()
        with sock, contextlib.closing(accepted):
            assert sock.getblocking() is False
            sock.send(b"x")
            assert accepted.recv(1) == b"x"
    assert Path("/proc/thread-self/ns/net").readlink() == own
    with pytest.raises(OSError, match="refused"), socket.socket() as outside:
        outside.connect(("127.0.0.1", 22005))


async def test_dial_reports_a_refused_connection(
    surroundings: Surroundings, network: Network
) -> None:
    with pytest.raises(ChannelLost):
        await dial(surroundings.vm, "127.0.0.1", 22005)
    with pytest.raises(NetworkFailed):
        await dial("pdt-no-such-namespace", "127.0.0.1", 22005)
