"""The channel against peers that are slow, broken or hostile; real machines are in tests/vm."""

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


# -- connecting -----------------------------------------------------------------------------------


async def test_a_peer_that_says_nothing_is_given_up(peer: Peer) -> None:
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


async def test_a_peer_that_talks_nonsense_is_given_up() -> None:
    async def nonsense() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.send(b"\0\xff" * 20_000)
        theirs.close()
        return ours

    with pytest.raises(ChannelLost):
        await channel_to(nonsense).connect(0.5)


async def test_another_host_key_is_not_accepted_and_not_tried_again(
    peer: Peer, channel: Channel
) -> None:
    peer.options["server_host_keys"] = [asyncssh.generate_private_key("ssh-ed25519")]
    with pytest.raises(GuestMisbehaved):
        await channel.connect()
    assert len(peer.sockets) == 1


async def test_a_peer_that_refuses_the_key_is_told_apart(peer: Peer, channel: Channel) -> None:
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


async def test_it_connects_as_soon_as_somebody_listens(peer: Peer) -> None:
    tries = 0

    async def third_time() -> socket.socket:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ChannelLost("nobody yet")
        return await peer.open()

    channel = channel_to(third_time)
    await channel.connect()
    assert tries == 3
    await channel.close()


async def test_nothing_of_the_hosts_ssh_set_up_is_read(
    peer: Peer, channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host *\n  User nobody\n  ProxyCommand false\n")
    (tmp_path / ".ssh/known_hosts").write_text("nonsense\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    await channel.connect()
    assert peer.connections[0].get_extra_info("username") == "root"


# -- programs -------------------------------------------------------------------------------------


async def test_a_cut_in_the_middle_is_told_and_the_next_call_connects_again(
    peer: Peer, channel: Channel
) -> None:
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


async def test_calls_at_once_share_one_connection(peer: Peer, channel: Channel) -> None:
    async def succeed(process: Any) -> None:
        process.exit(0)

    peer.program = succeed
    done = await asyncio.gather(*(channel.run(["x"]) for _ in range(10)))
    assert [outcome.exit_code for outcome in done] == [0] * 10
    assert len(peer.sockets) == 1


async def test_output_that_nobody_reads_stops_at_the_window(peer: Peer, channel: Channel) -> None:
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
async def test_what_has_come_before_a_cut_is_still_read(
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


async def test_a_short_program_that_prints_or_lasts_too_long_is_ended(
    peer: Peer, channel: Channel
) -> None:
    async def print_much(process: Any) -> None:
        process.stdout.write(bytes(100_000))
        await process.stdin.read()
        await asyncio.sleep(60)

    peer.program = print_much
    with pytest.raises(GuestMisbehaved, match="printed more"):
        await channel.run(["x"], max_output=1000)
    with pytest.raises(GuestMisbehaved, match="did not finish"):
        await channel.run(["x"], max_output=200_000, timeout_s=0.3)


async def test_output_held_open_by_something_left_behind_does_not_hold_us(
    peer: Peer, channel: Channel
) -> None:
    async def exit_but_hold(process: Any) -> None:
        process.stdout.write(b"done")
        process.channel._send_request(b"exit-status", b"\0\0\0\x07")
        await asyncio.sleep(60)

    peer.program = exit_but_hold
    async with asyncio.timeout(5):
        outcome = await channel.run(["x"])
    assert (outcome.exit_code, outcome.stdout) == (7, b"done")


async def test_a_peer_that_never_starts_the_program_is_given_up(
    peer: Peer, channel: Channel
) -> None:
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


async def test_what_a_peer_says_is_cleaned_and_shortened(peer: Peer) -> None:
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


# -- files ----------------------------------------------------------------------------------------


class Endless(asyncssh.SFTPServer):
    """Says that every file is small, and has no end."""

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return b"x" * size


async def test_a_file_without_end_is_not_read_for_ever(
    peer: Peer, channel: Channel, tmp_path: Path
) -> None:
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


async def test_a_peer_without_files_is_told(channel: Channel) -> None:
    with pytest.raises(ChannelLost):
        await channel.write_files([GuestFile("/root/a", b"x")])


@pytest.mark.parametrize(
    "path",
    ["", "/", "a", "/a/../b", "/a/./b", "//a", "/a//b", "/a/", "/a\0b", "/a\nb", "/" + "a" * 2000],
)
async def test_paths_that_are_not_plain_are_refused_before_anything_is_sent(
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


def test_secrets_are_not_in_what_is_printed_of_an_outcome() -> None:
    from polydev.hostagent.channel import CommandResult

    assert "secret" not in repr(CommandResult(0, b"secret", b"secret"))
