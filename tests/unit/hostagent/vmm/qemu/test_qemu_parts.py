"""Parts of the QEMU driver that face a QEMU compromised by its guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from polydev.hostagent.vmm import process
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.qemu import ipc as qemu_ends
from polydev.hostagent.vmm.qemu import qmp
from polydev.hostagent.vmm.qemu.command import (
    Acceleration,
    BootDescriptors,
    MachineDescriptors,
    machine_arguments,
)
from polydev.hostagent.vmm.qemu.qmp import Qmp
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.hostagent.vmm.qemu.tsc import tsc_khz
from polydev.shared.errors import VmmFailed

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


@contextlib.asynccontextmanager
async def served_by(serve: Serve) -> AsyncIterator[socket.socket]:
    """A socket whose peer is `serve`."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    serving = asyncio.create_task(serve(reader, writer))  # type: ignore[arg-type]
    yield ours
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    writer.close()


def ignore(name: str, data: dict[str, Any]) -> None:
    pass


async def test_responses_and_events_are_dispatched() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        held = []
        while line := await reader.readline():
            asked = json.loads(line)
            writer.write(b'{"event": "RESUME", "data": {}}\n{"return": {}, "id": 999}\n')
            held.append({"return": asked["execute"], "id": asked["id"]})
            if asked["execute"] == "qmp_capabilities" or len(held) == 2:
                for answer in reversed(held):
                    writer.write(json.dumps(answer).encode() + b"\n")
                held.clear()

    events = []
    async with served_by(serve) as connected:
        client = await Qmp.connect(connected, lambda name, data: events.append(name))
        sent = await asyncio.gather(client.execute("one"), client.execute("two"))
        assert sent == ["one", "two"]
        await client.close()
    assert events == ["RESUME"] * 3


@pytest.mark.parametrize(
    "lines",
    [b"", b"nonsense\n", b"[]\n", b"\xff\xfe\n", b"x" * 3_000_000, b'{"QMP": {}}\n[1, 2]\n'],
)
async def test_garbage_is_a_failure(lines: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(lines)
        await writer.drain()
        writer.close()

    async with asyncio.timeout(20):
        async with served_by(serve) as connected:
            with pytest.raises(VmmFailed, match=r"control socket failed|did not answer"):
                await Qmp.connect(connected, ignore)
    assert connected.fileno() == -1


async def test_deeply_nested_json_only_ends_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        asked = json.loads(await reader.readline())
        writer.write(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\n")
        await reader.readline()
        writer.write(b"[" * 500_000 + b"\n")

    async with served_by(serve) as connected:
        client = await Qmp.connect(connected, ignore)
        with pytest.raises(VmmFailed, match="closed"):
            await client.execute("query-status")
        await client.close()  # close() must not hang after that


async def test_missing_response_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        answered = json.loads(await reader.readline())["id"]
        writer.write(b'{"return": {}, "id": %d}\n' % answered)
        await asyncio.sleep(3600)

    monkeypatch.setattr(qmp, "_ANSWER_LIMIT_S", 0.2)
    async with served_by(serve) as connected:
        client = await Qmp.connect(connected, ignore)
        with pytest.raises(VmmFailed, match="did not answer `cont`"):
            await client.execute("cont")
        await client.close()


async def test_error_text_is_bounded() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            asked = json.loads(line)
            error = {"error": {"class": "GenericError", "desc": "no " * 9000}, "id": asked["id"]}
            writer.write(
                json.dumps({"return": {}, "id": 1} if asked["id"] == 1 else error).encode()
            )
            writer.write(b"\n")

    async with served_by(serve) as connected:
        client = await Qmp.connect(connected, ignore)
        with pytest.raises(VmmFailed, match="no no") as caught:
            await client.execute("cont")
        assert len(caught.value.message) < 500
        await client.close()


async def test_pending_commands_fail_when_qemu_disconnects() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readline()
        writer.write(b'{"return": {}, "id": 1}\n')
        await reader.readline()
        writer.close()

    async with served_by(serve) as connected:
        client = await Qmp.connect(connected, ignore)
        for _ in range(2):
            async with asyncio.timeout(10):
                with pytest.raises(VmmFailed):
                    await client.execute("cont")
        await client.close()


async def test_exit_before_the_identity_file_is_reported_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = process.ProcessIdentity.write

    def note_late(identity: process.ProcessIdentity, folder: Path) -> None:
        ending = process.open_process(identity.pid)
        assert ending is not None
        while not ending.has_ended:
            time.sleep(0.01)
        time.sleep(0.3)  # time for a clean-up that comes too early
        note(identity, folder)

    monkeypatch.setattr(process.ProcessIdentity, "write", note_late)
    ends_at_once = ["/bin/sh", "-c", "echo 'cannot load libmissing.so' >&2; exit 1"]
    with (
        qemu_ends.create_endpoints(tmp_path) as handed,
        pytest.raises(VmmFailed, match="cannot load libmissing"),
    ):
        await QemuSession.start(tmp_path, ends_at_once, [], handed, Marker("-"))
    assert [it.name for it in tmp_path.iterdir()] == ["error.log"]


DIES_WHEN_ITS_GUEST_IS_TO_RUN = """
import json, socket, sys
qmp, console = (socket.socket(fileno=int(word)) for word in sys.argv[1:])
client = qmp.accept()[0].makefile("rw")
print(json.dumps({"QMP": {"version": {}, "capabilities": []}}), file=client, flush=True)
asked = json.loads(client.readline())
print(json.dumps({"return": {}, "id": asked["id"]}), file=client, flush=True)
client.readline()
print("cannot allocate memory", file=sys.stderr)
"""


@pytest.mark.parametrize("ends", [True, False])
async def test_exit_at_the_guests_start_is_reported_with_its_output(
    tmp_path: Path, ends: bool
) -> None:
    script = DIES_WHEN_ITS_GUEST_IS_TO_RUN
    if not ends:
        refused = '{"error": {"class": "GenericError", "desc": "no"}, "id": 2}'
        script += f"print('{refused}', file=client, flush=True)\nqmp.accept()"
    with qemu_ends.create_endpoints(tmp_path) as handed:
        descriptors = [str(it.fileno()) for it in (handed.qmp, handed.console)]
        argv = [sys.executable, "-c", script, *descriptors]
        session = await QemuSession.start(tmp_path, argv, [], handed, Marker("-"))

    async def let_run() -> None:
        try:
            await session.qmp.execute("cont")
        except VmmFailed as error:
            await session.abort_start(error)
            raise

    message = "QEMU did not start: cannot allocate memory" if ends else "QEMU error"
    with pytest.raises(VmmFailed, match=message):
        await let_run()
    assert [it.name for it in tmp_path.iterdir()] == ["error.log"]


def test_process_is_recognised_by_user_not_by_arguments() -> None:
    uid = 1_900_000_123
    sleeper = "import time; print(flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", sleeper], user=uid, stdout=subprocess.PIPE, cwd="/"
    ) as vmm:
        assert vmm.stdout is not None
        vmm.stdout.readline()
        held = process.open_process(vmm.pid)
        assert held is not None
        found = process.find_process(held.identity, uid)
        assert found is not None
        assert process.find_process(held.identity, uid + 1) is None
        later = process.ProcessIdentity(
            vmm.pid, held.identity.start_ticks + 1, held.identity.boot_id
        )
        assert process.find_process(later, uid) is None
        found.release()
        held.release()
        vmm.kill()


def test_tsc_frequency_is_the_hosts() -> None:
    khz = tsc_khz()
    assert 500_000 < khz < 10_000_000
    assert tsc_khz() == khz
    tsc_khz.cache_clear()
    assert tsc_khz() == pytest.approx(khz, rel=0.02)


def spec(**changes: Any) -> LaunchSpec:
    here = Path("/nowhere")
    values: dict[str, Any] = {
        "vm_id": "vm-00000000-0000-4000-8000-000000000001", "folder": here, "kernel": here,
        "initramfs": here, "root_image": here, "disk": here, "config_drive": here,
        "memory_mib": 512, "vcpus": 1, "netns": "ns", "tap": "tap0", "mac": "02:00:00:00:00:01",
        "channel_mac": "02:00:00:00:00:02", "channel_port": 22005, "uid": 64000,
        "ready_marker": "READY",
    }  # fmt: skip
    return LaunchSpec(**{**values, **changes})


def arguments(how: Acceleration, **changes: Any) -> str:
    files = MachineDescriptors(root_image=10, disk=11, config_drive=12, tap=13)
    return " ".join(machine_arguments(spec(**changes), BootDescriptors(20, 21, 22, 23), files, how))


def test_emulation_has_tsc_frequency_and_memory_limit() -> None:
    line = arguments(Acceleration("tcg", tsc_khz=2_600_000))
    assert "tsc_early_khz=2600000 tsc=reliable" in line
    assert "tcg,thread=multi,tb-size=256" in line
    assert "tb-size=512" in arguments(Acceleration("tcg", tsc_khz=1), memory_mib=2048)
    line = arguments(Acceleration("kvm"))
    assert "tsc" not in line
    assert "-accel kvm -cpu host" in line


def test_vmm_has_no_paths_and_no_outside_access() -> None:
    line = arguments(Acceleration("kvm"))
    assert "/nowhere" not in line
    assert "-nodefaults -no-user-config" in line
    for kind in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol"):
        assert f"{kind}=deny" in line
    assert "user,id=channel,restrict=on" in line
    assert "hostfwd=tcp:127.0.0.1:22005-10.0.2.15:22" in line
    assert "filename=/proc/self/fd/10,read-only=on" in line
    assert "filename=/proc/self/fd/11,read-only=off" in line
    assert "filename=/proc/self/fd/12,read-only=on" in line


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_guest_has_a_reference_timer(accelerator: str) -> None:
    """Without one, a guest may hang at its first sleep on a loaded host."""
    assert "pit=on,pic=on" in arguments(Acceleration(accelerator))
