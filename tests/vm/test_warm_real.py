"""Test the isolation of two concurrent clones of a browser machine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest
from real_machines import Fleet, fleet

from polydev.hostagent.channel import Channel
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.system.namespaces import NamespaceThread, dial
from polydev.hostagent.warm_pool import Headroom, WarmPolicy, WarmPool
from polydev.hostagent.warm_pool.templates import Templates
from polydev.shared.domain import MachineKind, MachineSize, new_vm_id
from polydev.shared.errors import GuestMisbehaved, MachineBusy
from polydev.shared.host_protocol import CreateMachine, ExecRequest, HostMachineView

pytestmark = pytest.mark.vm

SHAPE = MachineSize(2048, 2, 6144)
WAITS = {"purpose": "warm-waiting"}
MAKE_LIMIT_S, CLONE_LIMIT_S, ANSWER_LIMIT_S = 600.0, 600.0, 300.0
_POLL_S = 0.2
_OUTGOING = 4
"""Source: packet(7), PACKET_OUTGOING: frames from the host to a machine."""
_FACTS = """
cat /etc/machine-id /proc/sys/kernel/hostname /run/polydev/token
echo
head -c 32 /dev/urandom | od -An -tx1 -w32
cat /sys/class/net/eth0/address
ip -4 -o addr show dev eth0
date +%s.%N
curl -s -m 2 http://192.168.100.1:9/ || true  # sends a frame that the capture sees
"""
_PAGE = """
import asyncio, json, aiohttp
async def go():
    async with aiohttp.ClientSession() as session:
        port = "http://127.0.0.1:9222/json"
        async with session.put(port + "/new?http://127.0.0.1:8080/health") as answer:
            page = await answer.json(content_type=None)
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as line:
            async def ask(number, method, **params):
                await line.send_json({"id": number, "method": method, "params": params})
                while (found := await line.receive_json()).get("id") != number:
                    pass
                return found.get("result", {})  # none while one page replaces another
            while True:
                reply = await ask(1, "Runtime.evaluate", returnByValue=True, expression='''[
                    document.readyState, document.body?.innerText, Math.random(),
                    Array.from(crypto.getRandomValues(new Uint32Array(4))), document.cookie]''')
                value = reply.get("result", {}).get("value")
                if value and value[0] == "complete" and value[1]:
                    break
                await asyncio.sleep(0.2)
            shot = await ask(2, "Page.captureScreenshot")
            print(json.dumps({"text": value[1], "math": value[2], "crypto": value[3],
                              "cookie": value[4], "picture": len(shot["data"])}))
asyncio.run(go())
"""


@dataclass
class Capture:
    """Captured frames of the VM network: TAP and sender MAC."""

    seen: set[tuple[str, str]] = field(default_factory=set)


@contextmanager
def capturing(sock: socket.socket) -> Iterator[Capture]:
    """Capture every frame on any device of a namespace."""
    capture, ended = Capture(), threading.Event()
    sock.settimeout(_POLL_S)  # so that the thread notices its end

    def listen() -> None:
        while not ended.is_set():
            try:
                frame, (device, _, kind, *_) = sock.recvfrom(2048)
            except TimeoutError:
                continue
            if kind != _OUTGOING:
                capture.seen.add((device, frame[6:12].hex(":")))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield capture
    finally:
        ended.set()
        thread.join()
        sock.close()


def _packets() -> socket.socket:
    every_protocol = 3
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))


def _create_request() -> CreateMachine:
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        **SHAPE.fields(),
        token=secrets.token_urlsafe(32),  # type: ignore[arg-type]
        ready_timeout_s=CLONE_LIMIT_S,
    )


async def _output_of(machines: MachineService, vm_id: str, *argv: str) -> str:
    """Run a program in a machine; return its output."""
    async with asyncio.timeout(ANSWER_LIMIT_S):
        program = await machines.exec(vm_id, ExecRequest(argv=list(argv)))
        output = b""
        while (chunk := await program.read()) is not None:
            output += chunk[1]
        assert await program.wait() == 0, output
    return output.decode()


async def _status(machines: MachineService, vm_id: str, token: str) -> bytes:
    """Return the browser service's HTTP status for a token."""
    connection = await machines.open_tcp(vm_id, 8080)
    lines = ("GET /nothing HTTP/1.1", "Host: 127.0.0.1:8080", f"Authorization: Bearer {token}")
    await connection.write("\r\n".join((*lines, "Connection: close", "", "")).encode())
    async with asyncio.timeout(ANSWER_LIMIT_S):
        answer = await connection.read(4096)
    await connection.close()
    return answer.split()[1]


async def _reaches(machines: MachineService, vm_id: str, address: str) -> bool:
    """Return True if an address answers the machine, even with a refusal."""
    script = (
        "import socket, sys\ntry: socket.create_connection((sys.argv[1], 22), 3)\n"
        "except ConnectionRefusedError: print('answers')\nexcept OSError: print('silent')\n"
        "else: print('answers')"
    )
    return "answers" in await _output_of(machines, vm_id, "/usr/bin/python3", "-c", script, address)


async def test_two_clones_share_no_private_state() -> None:
    async with fleet(
        netns=f"pdt-{secrets.token_hex(3)}", uplink="none", egress="none", dns=()
    ) as f:
        root = f.host.machines_dir.parent / "warm"
        policy = WarmPolicy(
            root, Headroom(root.parent), quiet_s=3600, waiting=1, refill_quiet_s=1, poll_s=0.5
        )
        registry = MachineRegistry(f.host)
        machines = MachineService(f.host, registry, WarmPool(f.host, registry, policy))
        making = asyncio.create_task(machines.clones.run())
        try:
            await _create_template(machines)
            await _wait_for_standby_clone(machines)
            # Stop the refill: another clone would be one more machine and take CPU.
            machines.clones._policy = dataclasses.replace(policy, waiting=0)
            await _check_isolation(f, machines)
        finally:
            making.cancel()
            await asyncio.wait({making})
            for view in machines.views():
                await machines.destroy(view.vm_id)
            await machines.close()


async def _create_template(machines: MachineService) -> None:
    await machines.clones.request_template(SHAPE)
    async with asyncio.timeout(MAKE_LIMIT_S):
        while (view := await machines.clones.view()).state == "making":
            await asyncio.sleep(0.5)
    assert view.state == "ready", view.words
    others = [view for view in machines.views() if view.labels != WAITS]
    assert not others, "the template's machine is destroyed"


async def _wait_for_standby_clone(machines: MachineService) -> None:
    """Wait for the standby clone and check that it uses no CPU."""
    async with asyncio.timeout(CLONE_LIMIT_S):
        while not (await machines.clones.view()).waiting:
            await asyncio.sleep(0.5)
    [view] = machines.views()
    assert view.labels == WAITS
    inventory = await machines.inventory()
    assert inventory.machines == inventory.folders == list(inventory.processes) == [view.vm_id]
    assert len(inventory.taps) == 1
    assert view.pid is not None
    before_s = cpu_time_s(view.pid)
    await asyncio.sleep(2)
    assert cpu_time_s(view.pid) - before_s < 0.2
    with pytest.raises(MachineBusy):
        await machines.exec(view.vm_id, ExecRequest(argv=["true"]))


def cpu_time_s(pid: int) -> float:
    """Return the CPU time of a process. Source: proc(5), `stat`, fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _check_isolation(f: Fleet, machines: MachineService) -> None:
    thread = NamespaceThread(f.host.network.netns)
    packets = await thread.run(_packets)
    thread.close()
    requests = (_create_request(), _create_request())
    with capturing(packets) as capture:
        [standby] = machines.views()
        views = await asyncio.gather(*(machines.create(it) for it in requests))
        assert all(view.is_clone for view in views)
        assert [view.mac for view in views].count(standby.mac) == 1, (
            "one of them was the standby clone"
        )
        facts = [
            (await _output_of(machines, it.vm_id, "sh", "-c", _FACTS)).split("\n")
            for it in requests
        ]
        now_s = time.time()
    for it, view, fact in zip(requests, views, facts, strict=True):
        machine_id, hostname, token, _, mac, address, clock_s = fact[:7]
        assert machine_id == it.vm_id.removeprefix("vm-").replace("-", "")
        assert hostname == it.vm_id[:11]
        assert it.token is not None
        assert token == it.token.get_secret_value()
        assert mac == view.mac
        assert f"inet {view.ip_address}/24" in address
        assert abs(float(clock_s) - now_s) < ANSWER_LIMIT_S / 2, "the clock is wrong"
    assert len({fact[3] for fact in facts}) == 2, "both draw the same random numbers"
    await _check_mac_addresses(f, capture, views)
    await _check_ssh_keys(f, machines, views)
    await _check_browsers(machines, requests, views)


async def _check_mac_addresses(f: Fleet, capture: Capture, views: list[HostMachineView]) -> None:
    """Check that each clone sends only with its own MAC."""
    addresses = (await f.host.network.state()).addresses
    assert set(addresses) == {view.vm_id for view in views}
    taps = set((await f.host.network.state()).taps)
    sent = {(device, mac) for device, mac in capture.seen if device in taps}
    assert {mac for _, mac in sent} == {view.mac for view in views}
    assert len(sent) == len(views)


async def _check_ssh_keys(f: Fleet, machines: MachineService, views: list[HostMachineView]) -> None:
    [template] = Templates(f.host.machines_dir.parent / "warm").all()
    old = await make_keys(template.folder.keys)
    host_keys = set()
    for view in views:
        folder = f.host.folder(view.vm_id)
        record = folder.read()
        assert record is not None
        assert record.place is not None
        port = record.place.channel_port

        async def opened(port: int = port) -> socket.socket:
            return await dial(f.host.network.netns, "127.0.0.1", port)

        new = await make_keys(folder.keys)
        host_keys.add(new.host_public)
        stranger = Channel(opened, new.host_public, old.client_private.decode())
        with pytest.raises(GuestMisbehaved, match="no longer accepts"):
            await stranger.connect(ANSWER_LIMIT_S)
        answers = await asyncssh.get_server_host_key("machine", sock=await opened(), config=None)
        assert answers is not None
        assert answers.export_public_key("openssh").decode().split()[1] in new.host_public
    assert len(host_keys | {old.host_public}) == 3


async def _check_browsers(
    machines: MachineService, requests: tuple[CreateMachine, ...], views: list[HostMachineView]
) -> None:
    pages = [
        json.loads(await _output_of(machines, it.vm_id, "/usr/bin/python3", "-c", _PAGE))
        for it in requests
    ]
    assert all(page["text"] and page["picture"] for page in pages)
    assert len({page["math"] for page in pages}) == 2
    assert len({tuple(page["crypto"]) for page in pages}) == 2
    assert all(not page["cookie"] for page in pages)
    tokens = [it.token.get_secret_value() for it in requests if it.token]
    for it, own in zip(requests, tokens, strict=True):
        answers = {token: await _status(machines, it.vm_id, token) for token in tokens}
        assert answers[own] == b"404"
        assert set(answers.values()) == {b"401", b"404"}
    first, second = views
    assert first.ip_address
    assert second.ip_address
    assert not await _reaches(machines, first.vm_id, second.ip_address)
    assert await _reaches(machines, first.vm_id, first.ip_address)
