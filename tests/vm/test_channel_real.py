"""Test the channel to a real machine: programs, files, ports, lost connections."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from real_machines import RealMachine, fleet
from saved_machine import SavedMachine

from polydev.hostagent.channel import Channel, RemoteProcess
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ChannelLost, GuestMisbehaved, NoSuchFile
from polydev.shared.host_protocol import STDERR, STDOUT, ExecRequest

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

ECHO = r"""
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:9000") or die;
syswrite(STDOUT, "listens\n");
my $peer = $listener->accept;
while (sysread($peer, my $data, 4096)) { syswrite($peer, $data) }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="machine")
async def _machine(saved_machine: SavedMachine) -> AsyncIterator[RealMachine]:
    netns = f"pdt-{secrets.token_hex(3)}"
    async with fleet(saved_machine, netns=netns, uplink="none") as machines:
        yield await machines.resume(saved_machine.vm_id)


@pytest.fixture(name="channel")
def _channel(machine: RealMachine) -> Channel:
    return machine.channel


async def output_of(channel: Channel, *argv: str) -> str:
    outcome = await channel.run(argv)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome.stdout.decode().strip()


async def count_running(channel: Channel, name: str) -> int:
    names = await output_of(channel, "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null; true")
    return names.splitlines().count(name)


async def until_gone(channel: Channel, name: str) -> None:
    async with asyncio.timeout(60):
        while await count_running(channel, name):
            await asyncio.sleep(0.2)


async def read_until(process: RemoteProcess, text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(60):
        while text not in seen:
            chunk = await process.read()
            assert chunk is not None, seen
            seen += chunk[1]
    return seen


async def test_program_has_streams_arguments_and_exit_code(channel: Channel) -> None:
    script = 'printf %s "$1$V$PWD"; echo problem >&2; cat; exit 3'
    request = ExecRequest(
        argv=["sh", "-c", script, "sh", "a 'b' $c;"], env={"V": "; d"}, cwd="/usr"
    )
    async with await channel.exec(request) as process:
        await process.write(b"in")
        await process.write_eof()
        streams = {STDOUT: b"", STDERR: b""}
        while (chunk := await process.read()) is not None:
            streams[chunk[0]] += chunk[1]
        assert await process.wait() == 3
    assert streams == {STDOUT: b"a 'b' $c;; d/usrin", STDERR: b"problem\n"}


async def test_terminal_has_size_and_hangs_up(channel: Channel) -> None:
    request = ExecRequest(argv=["sh"], pty=(91, 33))
    async with await channel.exec(request) as process:
        await process.write(b"stty size; echo $TERM\n")
        seen = await read_until(process, b"xterm-256color")
        assert b"33 91" in seen
        await process.resize(70, 20)
        await process.write(b"stty size\n")
        await read_until(process, b"20 70")
        await process.write(b"sleep 4711\n")
        await read_until(process, b"sleep 4711")
    await until_gone(channel, "sleep")


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("KILL", 137), ("HUP", 129)])
async def test_signals_arrive(channel: Channel, name: str, code: int) -> None:
    async with await channel.exec(ExecRequest(argv=["sleep", "1000"])) as process:
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while not process_ended(process):
                await process.send_signal(name)
            assert await process.wait() == code


def process_ended(process: RemoteProcess) -> bool:
    return process._session.exited.is_set()


async def test_abandoned_program_ends_with_its_children(channel: Channel) -> None:
    script = "sleep 1000 & setsid sleep 1000 & echo started; wait"
    async with await channel.exec(ExecRequest(argv=["sh", "-c", script])) as process:
        await read_until(process, b"started")
    await until_gone(channel, "sleep")


async def test_program_that_ignores_termination_is_killed(channel: Channel) -> None:
    script = "trap '' TERM HUP; echo started; sleep 1000; sleep 1000"
    async with await channel.exec(ExecRequest(argv=["sh", "-c", script])) as process:
        await read_until(process, b"started")
    await until_gone(channel, "sleep")
    assert await process.wait() == 137


async def test_lost_connection_ends_programs_and_next_call_reconnects(channel: Channel) -> None:
    plain = await channel.exec(ExecRequest(argv=["sleep", "1000"]))
    terminal = await channel.exec(ExecRequest(argv=["sleep", "1000"], pty=(80, 24)))
    async with asyncio.timeout(60):
        while await count_running(channel, "sleep") < 2:
            await asyncio.sleep(0.2)
    await abort_connection(channel)
    for process in (plain, terminal):
        with pytest.raises(ChannelLost):
            await process.wait()
        await process.close()
    await until_gone(channel, "sleep")


async def abort_connection(channel: Channel) -> None:
    """Abort the connection like a killed agent."""
    connection = channel._connection
    assert connection is not None
    connection.abort()
    await connection.wait_closed()


async def test_new_agent_connects_beside_stale_connection(machine: RealMachine) -> None:
    old = machine.channel
    new = Channel(machine.running.vmm.open_channel, *keys_of(old))
    try:
        assert await output_of(new, "echo", "new") == "new"
        assert await output_of(old, "echo", "old") == "old"
    finally:
        await new.close()


def keys_of(channel: Channel) -> tuple[str, str]:
    return (
        channel._host_key.export_public_key().decode(),
        channel._client_key.export_private_key().decode(),
    )


async def test_killed_sshd_is_restarted(channel: Channel) -> None:
    outcome = await channel.run(["sh", "-c", "kill -9 $(cat /run/sshd.pid)"])
    assert outcome.exit_code == 0
    await abort_connection(channel)
    assert await output_of(channel, "echo", "back") == "back"


async def test_files_have_owner_mode_and_parents(channel: Channel) -> None:
    path = "/root/.deep/er/auth.json"
    await channel.write_files([GuestFile(path, b"one", mode=0o640, uid=1, gid=2)])
    await channel.write_files([GuestFile(path, b"two", mode=0o640, uid=1, gid=2)])
    await channel.write_files([GuestFile(path, b"three", if_absent=True)])
    assert await channel.read_file(path, 100) == b"two"
    stat = await output_of(channel, "stat", "-c", "%a %u %g", path, "/root/.deep", "/root/.deep/er")
    assert stat.splitlines() == ["640 1 2", "700 0 0", "700 0 0"]
    assert await output_of(channel, "ls", "-A", "/root/.deep/er") == "auth.json"
    await channel.remove_files([path, path])
    with pytest.raises(NoSuchFile):
        await channel.read_file(path, 100)


async def test_symlink_is_replaced_and_not_followed(channel: Channel) -> None:
    await output_of(channel, "sh", "-c", "echo old > /root/target; ln -sf target /root/link")
    await channel.write_files([GuestFile("/root/link", b"new")])
    assert await output_of(channel, "cat", "/root/target", "/root/link") == "old\nnew"


async def test_large_file_arrives_whole(channel: Channel) -> None:
    content = secrets.token_bytes(3_000_000)
    await channel.write_files([GuestFile("/root/large", content)])
    assert await channel.read_file("/root/large", 3_000_000) == content
    with pytest.raises(GuestMisbehaved):
        await channel.read_file("/root/large", 2_999_999)


async def test_full_disk_is_reported_and_leaves_no_partial_file(channel: Channel) -> None:
    await output_of(channel, "mkdir", "-p", "/root/tiny")
    await output_of(channel, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/root/tiny")
    with pytest.raises(GuestMisbehaved):
        await channel.write_files([GuestFile("/root/tiny/file", bytes(1_000_000))])
    assert await output_of(channel, "ls", "-A", "/root/tiny") == ""
    await output_of(channel, "umount", "/root/tiny")


async def test_open_port_is_reached_and_closed_port_is_reported(channel: Channel) -> None:
    async with await channel.exec(ExecRequest(argv=["perl", "-e", ECHO])) as server:
        await read_until(server, b"listens")
        stream = await channel.open_tcp(9000)
        await stream.write(b"hello")
        assert await stream.read(100) == b"hello"
        await stream.write_eof()
        assert await stream.read(100) == b""
        await stream.close()
    await until_gone(channel, "perl")
    with pytest.raises(ChannelLost):
        await channel.open_tcp(9000)
