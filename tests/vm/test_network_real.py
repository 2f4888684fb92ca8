"""Test the VM network from inside two real machines, as root."""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import dataclass

import pytest
import pytest_asyncio
from real_machines import RealMachine, fleet
from saved_machine import SavedMachine
from wire import (
    ANY,
    GATEWAY,
    HOST,
    PRIVATE,
    WORLD,
    Surroundings,
    create_surroundings,
    ip,
    run_inside,
    within,
)

from polydev.shared.host_protocol import ExecRequest

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

PORT = 7000
FETCH_LIMIT_S, NOT_FETCHED_S = 50, 5
LISTEN_EVERYWHERE = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 1, LocalPort => 9000) or die;"
    'syswrite(STDOUT, "listens\n"); sleep 1000'
)


class Greeter:
    """Server on every address of a namespace that answers with the caller's address."""

    def __init__(self, surroundings: Surroundings, name: str) -> None:
        self._listener = surroundings.listen_tcp(name, ANY, PORT)
        self.callers: list[str] = []
        self._thread = threading.Thread(target=self._greet)
        self._thread.start()

    def _greet(self) -> None:
        while True:
            try:
                caller, (address, _) = self._listener.accept()
            except OSError:
                return
            with caller:
                self.callers.append(address)
                caller.sendall(f"hello {address}".encode())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@dataclass(frozen=True)
class MachinePair:
    surroundings: Surroundings
    one: RealMachine
    other: RealMachine


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="pair")
async def _pair(saved_machine: SavedMachine) -> AsyncIterator[MachinePair]:
    with create_surroundings() as surroundings:
        async with fleet(
            saved_machine, netns=surroundings.vm, uplink_netns=surroundings.outer
        ) as machines:
            one = await machines.resume(saved_machine.vm_id)
            yield MachinePair(surroundings, one, await machines.start())


async def fetch(machine: RealMachine, address: str, limit_s: int = FETCH_LIMIT_S) -> str:
    """Return a TCP server's greeting to the machine, or "" if unreachable."""
    script = f"exec 3<>/dev/tcp/{address}/{PORT} && cat <&3"
    outcome = await machine.channel.run(
        ["timeout", str(limit_s), "bash", "-c", script], timeout_s=60
    )
    return outcome.stdout.decode()


async def as_root(machine: RealMachine, script: str) -> None:
    outcome = await machine.channel.run(["busybox", "sh", "-ec", script], timeout_s=60)
    assert outcome.exit_code == 0, outcome.stderr


async def test_both_machines_reach_the_outside_through_nat(pair: MachinePair) -> None:
    with closing(Greeter(pair.surroundings, pair.surroundings.world)):
        for machine in (pair.one, pair.other):
            assert await fetch(machine, WORLD) == f"hello {HOST}"


async def test_neither_machine_reaches_the_other_the_host_or_private_networks(
    pair: MachinePair,
) -> None:
    names = (pair.surroundings.vm, pair.surroundings.outer, pair.surroundings.world)
    greeters = [Greeter(pair.surroundings, name) for name in names]
    listening = ["perl", "-e", LISTEN_EVERYWHERE.replace("9000", str(PORT))]
    async with await pair.other.channel.exec(ExecRequest(argv=listening)) as server:
        assert await server.read()
        targets = (pair.other.attachment.address, GATEWAY, HOST, *PRIVATE)
        fetching = (fetch(pair.one, address, NOT_FETCHED_S) for address in targets)
        answers = await asyncio.gather(*fetching)
    for greeter in greeters:
        greeter.close()
    assert dict(zip(targets, answers, strict=True)) == dict.fromkeys(targets, "")
    assert [greeter.callers for greeter in greeters] == [[], [], []]


async def test_root_in_machine_cannot_take_another_address_or_mac(pair: MachinePair) -> None:
    lan = f"$(basename $(dirname $(grep -l {pair.one.attachment.mac} /sys/class/net/*/address)))"
    route = f"ip route replace default via {GATEWAY} dev $lan"
    with closing(Greeter(pair.surroundings, pair.surroundings.world)):
        assert await fetch(pair.one, WORLD)
        stolen = f"lan={lan}; ip addr add {pair.other.attachment.address}/24 dev $lan;"
        await as_root(pair.one, f"{stolen} {route} src {pair.other.attachment.address}")
        assert await fetch(pair.one, WORLD, NOT_FETCHED_S) == ""
        given_back = f"lan={lan}; ip addr del {pair.other.attachment.address}/24 dev $lan; {route}"
        await as_root(pair.one, given_back)
        assert await fetch(pair.one, WORLD)

        def with_mac(mac: str) -> str:
            return f"ip link set $lan down; ip link set $lan address {mac}; ip link set $lan up;"

        there_and_back = (
            f"lan={lan}; {with_mac(pair.other.attachment.mac)} {route};"
            f"timeout {NOT_FETCHED_S} bash -c 'cat </dev/tcp/{WORLD}/{PORT}' >/tmp/got || true;"
            f"{with_mac(pair.one.attachment.mac)} {route}; [ ! -s /tmp/got ]"
        )
        await as_root(pair.one, there_and_back)
        assert await fetch(pair.one, WORLD)
        assert await fetch(pair.other, WORLD)


async def test_nothing_is_open_on_the_vm_network(pair: MachinePair) -> None:
    """Scan from the bridge, without the rules that would forbid it."""
    run_inside(pair.surroundings.vm, "nft", "delete", "table", "inet", "polydev")
    address = pair.one.attachment.address
    ip(pair.surroundings.vm, "route", "add", "10.0.2.15/32", "via", address)
    listening = ["perl", "-e", LISTEN_EVERYWHERE]
    async with await pair.one.channel.exec(ExecRequest(argv=listening)) as server:
        assert await server.read()
        assert await asyncio.to_thread(open_ports, pair.surroundings.vm, address, [9000]) == [9000]
    found = await asyncio.to_thread(open_ports, pair.surroundings.vm, address, range(1, 65536))
    assert found == []
    channel_port = ("10.0.2.15", [22], NOT_FETCHED_S)
    assert await asyncio.to_thread(open_ports, pair.surroundings.vm, *channel_port) == []
    assert (await pair.one.channel.run(["true"])).exit_code == 0


def open_ports(
    netns: str, address: str, ports: Iterable[int], limit_s: float = FETCH_LIMIT_S
) -> list[int]:
    """Scan TCP ports from inside a namespace, 200 at a time; return the open ones.

    A port that does not answer within `limit_s` counts as closed.
    """

    def scan() -> list[int]:
        found: list[int] = []
        waiting = list(ports)
        with selectors.DefaultSelector() as selector:
            while waiting or selector.get_map():
                while waiting and len(selector.get_map()) < 200:
                    sock = socket.socket()
                    sock.setblocking(False)
                    port = waiting.pop()
                    assert sock.connect_ex((address, port)) in (0, errno.EINPROGRESS)
                    selector.register(sock, selectors.EVENT_WRITE, (port, time.monotonic()))
                ready = {key.fd for key, _ in selector.select(0.5)}
                for key in list(selector.get_map().values()):
                    port, since = key.data
                    if key.fd not in ready and time.monotonic() - since < limit_s:
                        continue
                    selector.unregister(key.fileobj)
                    sock = key.fileobj  # type: ignore[assignment]
                    if key.fd in ready and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        found.append(port)
                    sock.close()
        return found

    return within(netns, scan)
