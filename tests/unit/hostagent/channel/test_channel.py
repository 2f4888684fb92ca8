"""The channel against slow, broken or hostile peers; tests/vm has real machines."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from ssh_peer import HOST_KEY, LIMITS, Peer, channel_to

from polydev.hostagent.channel import Channel
from polydev.shared.domain import GuestFile
from polydev.shared.errors import BadPath, ChannelLost, GuestMisbehaved
from polydev.shared.host_protocol import STDOUT, ExecRequest


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    made.cut()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    for sock in made.sockets:
        sock.close()


@pytest.fixture
async def channel(peer: Peer) -> AsyncIterator[Channel]:
    made = channel_to(peer.open)
    yield made
    await made.close()


# -- connecting ------------------------------------------------------------------------------------


async def test_silent_peer_times_out(peer: Peer) -> None:
    quiet = [socket.socketpair() for _ in range(20)]

    async def silent() -> socket.socket:
        ours, _ = quiet.pop()
        ours.setblocking(False)
        return ours

    channel = channel_to(silent)
    with pytest.raises(ChannelLost):
        await channel.connect(0.5)
    for pair in quiet:
        for sock in pair:
            sock.close()


async def test_garbage_from_the_peer_is_an_error() -> None:
    async def nonsense() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.send(b"\0\xff" * 20_000)
        theirs.close()
        return ours

    with pytest.raises(ChannelLost):
        await channel_to(nonsense).connect(0.5)


async def test_wrong_host_key_is_rejected_without_retry(peer: Peer, channel: Channel) -> None:
    peer.options["server_host_keys"] = [asyncssh.generate_private_key("ssh-ed25519")]
    with pytest.raises(GuestMisbehaved):
        await channel.connect()
    assert len(peer.sockets) == 1


async def test_refused_client_key_has_its_own_error(peer: Peer, channel: Channel) -> None:
    peer.options["server_factory"] = asyncssh.SSHServer
    peer.options["authorized_client_keys"] = asyncssh.import_authorized_keys("")

    async def open_refusing() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        options = {**peer.options, "server_host_keys": [HOST_KEY]}
        peer.tasks.append(asyncio.create_task(_ignoring(asyncssh.run_server(theirs, **options))))
        return ours

    with pytest.raises(GuestMisbehaved):
        await channel_to(open_refusing).connect()


async def _ignoring(work: Awaitable[object]) -> None:
    try:
        await work
    except (asyncssh.Error, OSError):
        return


async def test_connects_once_the_peer_listens(peer: Peer) -> None:
    tries = 0

    async def third_time() -> socket.socket:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ChannelLost("not listening yet")
        return await peer.open()

    channel = channel_to(third_time)
    await channel.connect()
    assert tries == 3
    await channel.close()


async def test_host_ssh_configuration_is_ignored(
    peer: Peer, channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host *\n  User nobody\n  ProxyCommand false\n")
    (tmp_path / ".ssh/known_hosts").write_text("nonsense\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    await channel.connect()
    assert peer.connections[0].get_extra_info("username") == "root"


# -- programs --------------------------------------------------------------------------------------


async def test_lost_connection_is_reported_and_reopened(peer: Peer, channel: Channel) -> None:
    async def speak_and_stay(process: Any) -> None:
        process.stdout.write(b"begun")
        await process.stdin.read()

    peer.program = speak_and_stay
    first = await channel.exec(ExecRequest(argv=["x"]))
    assert await first.read() == (STDOUT, b"begun")
    peer.cut()
    assert await first.read() is None
    with pytest.raises(ChannelLost):
        await first.wait()
    await first.write(b"into the void")
    await first.close()
    second = await channel.exec(ExecRequest(argv=["x"]))
    assert await second.read() == (STDOUT, b"begun")
    assert len(peer.connections) == 2


async def test_concurrent_calls_share_a_connection(peer: Peer, channel: Channel) -> None:
    async def succeed(process: Any) -> None:
        process.exit(0)

    peer.program = succeed
    done = await asyncio.gather(*(channel.run(["x"]) for _ in range(10)))
    assert [outcome.exit_code for outcome in done] == [0] * 10
    assert len(peer.sockets) == 1


async def test_unread_output_stops_at_the_window(peer: Peer, channel: Channel) -> None:
    given = 0

    async def print_forever(process: Any) -> None:
        nonlocal given
        while True:
            process.stdout.write(bytes(16 * 1024))
            given += 16 * 1024
            await process.stdout.drain()

    peer.program = print_forever
    program = await channel.exec(ExecRequest(argv=["yes"]))
    assert await program.read()
    before = -1
    while before != given:
        before = given
        await asyncio.sleep(0.2)
    assert given < 1024 * 1024
    assert await program.read()
    await program.close()


@pytest.mark.parametrize("cut", ["by us", "by the peer"])
async def test_output_before_a_lost_connection_is_readable(
    peer: Peer, channel: Channel, cut: str
) -> None:
    async def say_much(process: Any) -> None:
        process.stdout.write(b"x" * 100_000)
        process.stdout.write_eof()
        await process.stdin.read()

    peer.program = say_much
    program = await channel.exec(ExecRequest(argv=["x"]))
    async with asyncio.timeout(20):
        while program._session._buffered < LIMITS.stream_window:
            await asyncio.sleep(0.01)
    if cut == "by us":
        await channel.close()
    else:
        peer.cut()
        await program._session.closed.wait()
    size = 0
    while (chunk := await program.read()) is not None:
        size += len(chunk[1])
    assert size >= LIMITS.stream_window


async def test_run_enforces_output_and_time_limits(peer: Peer, channel: Channel) -> None:
    async def print_much(process: Any) -> None:
        process.stdout.write(bytes(100_000))
        await process.stdin.read()
        await asyncio.sleep(60)

    peer.program = print_much
    with pytest.raises(GuestMisbehaved, match="printed more"):
        await channel.run(["x"], max_output=1000)
    with pytest.raises(GuestMisbehaved, match="did not finish"):
        await channel.run(["x"], max_output=200_000, timeout_s=0.3)


async def test_output_held_open_by_a_child_is_not_awaited(peer: Peer, channel: Channel) -> None:
    async def exit_but_hold(process: Any) -> None:
        process.stdout.write(b"done")
        process.channel._send_request(b"exit-status", b"\0\0\0\x07")
        await asyncio.sleep(60)

    peer.program = exit_but_hold
    async with asyncio.timeout(5):
        outcome = await channel.run(["x"])
    assert (outcome.exit_code, outcome.stdout) == (7, b"done")


async def test_program_start_times_out(peer: Peer, channel: Channel) -> None:
    class Stuck(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        async def session_requested(self) -> Any:
            await asyncio.sleep(60)

    async def open_stuck() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        stuck = asyncssh.run_server(theirs, server_factory=Stuck, server_host_keys=[HOST_KEY])
        peer.tasks.append(asyncio.create_task(_ignoring(stuck)))
        return ours

    stuck = channel_to(open_stuck)
    with pytest.raises(ChannelLost):
        await stuck.exec(ExecRequest(argv=["x"]))
    await stuck.close()


async def test_peer_messages_are_bounded_and_printable(peer: Peer) -> None:
    class Rude(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        def connection_requested(self, *_: Any) -> Any:
            raise asyncssh.ChannelOpenError(1, "\x1b[2Jgo away " + "x" * 10_000)

    peer.options["server_factory"] = Rude

    async def open_rude() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        rude = asyncssh.run_server(theirs, server_factory=Rude, server_host_keys=[HOST_KEY])
        peer.tasks.append(asyncio.create_task(_ignoring(rude)))
        return ours

    channel = channel_to(open_rude)
    with pytest.raises(ChannelLost) as raised:
        await channel.open_tcp(8080)
    assert "\x1b" not in raised.value.message
    assert len(raised.value.message) < 300
    await channel.close()


# -- files -----------------------------------------------------------------------------------------


class Endless(asyncssh.SFTPServer):
    """Reports every file as small, and has no end."""

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return b"x" * size


async def test_endless_file_is_bounded(peer: Peer, channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    peer.options["sftp_factory"] = lambda chan: Endless(chan, chroot=os.fsencode(tmp_path))
    with pytest.raises(GuestMisbehaved):
        await channel.read_file("/small", 100_000)


async def test_only_regular_files_are_read(peer: Peer, channel: Channel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    peer.options["sftp_factory"] = lambda chan: asyncssh.SFTPServer(
        chan, chroot=os.fsencode(tmp_path)
    )
    for path in ("/fifo", "/folder"):
        with pytest.raises(GuestMisbehaved):
            await channel.read_file(path, 100)


async def test_missing_sftp_is_reported(channel: Channel) -> None:
    with pytest.raises(ChannelLost):
        await channel.write_files([GuestFile("/root/a", b"x")])


@pytest.mark.parametrize(
    "path",
    ["", "/", "a", "/a/../b", "/a/./b", "//a", "/a//b", "/a/", "/a\0b", "/a\nb", "/" + "a" * 2000],
)
async def test_invalid_paths_are_refused_before_sending(
    peer: Peer, channel: Channel, path: str
) -> None:
    for call in (
        channel.read_file(path, 10),
        channel.write_files([GuestFile(path, b"x")]),
        channel.remove_files([path]),
    ):
        with pytest.raises(BadPath):
            await call
    assert peer.sockets == []


def test_command_result_has_no_secrets_in_its_repr() -> None:
    from polydev.hostagent.channel import CommandResult

    assert "secret" not in repr(CommandResult(0, b"secret", b"secret"))
