"""Test the host agent's streams with the local host as guest.

Covers programs, TCP and HTTP over WebSockets, lost connections and slow readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from local_guest import STOPPED, VM, LocalGuest, serve_local_guest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosedError

from polydev.shared.errors import (
    ChannelLost,
    GuestMisbehaved,
    HostUnreachable,
    Invalid,
    MachineBusy,
    NoSuchFile,
    NoSuchMachine,
    PolydevError,
)
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import STDERR, STDOUT, DestroyMachine, ExecRequest

PYTHON = sys.executable


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[tuple[HostClient, LocalGuest]]:
    async with serve_local_guest(tmp_path) as (path, guest), HostClient(path) as host:
        yield host, guest


@pytest.fixture
def host(guest: tuple[HostClient, LocalGuest]) -> HostClient:
    return guest[0]


async def until_ended(pid: int) -> None:
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)


async def test_program_has_streams_and_exit_code(host: HostClient) -> None:
    script = (
        "import sys; d=sys.stdin.read(); print(d.upper()); print('oh', file=sys.stderr); exit(3)"
    )
    output = await host.run_program(VM, [PYTHON, "-c", script], stdin=b"hello")
    assert (output.exit_code, output.stdout, output.stderr) == (3, b"HELLO\n", b"oh\n")


async def test_program_is_interactive(host: HostClient) -> None:
    async with host.exec(VM, ExecRequest(argv=["cat"])) as process:
        chunks = aiter(process)
        for word in (b"one", b"two"):
            await process.write(word)
            assert await anext(chunks) == (STDOUT, word)
        await process.write_eof()
        assert await process.wait() == 0


async def test_signal_reaches_program(host: HostClient) -> None:
    async with host.exec(VM, ExecRequest(argv=["sleep", "100"])) as process:
        await process.send_signal("TERM")
        assert await process.wait() == 128 + 15


async def test_large_input_and_output_pass_unchanged(host: HostClient) -> None:
    data = os.urandom(5_000_000)
    output = await host.run_program(VM, ["cat"], stdin=data, limit_bytes=6_000_000)
    assert output.stdout == data


async def test_program_may_end_without_reading_input(host: HostClient) -> None:
    output = await host.run_program(VM, ["true"], stdin=b"x" * 3_000_000)
    assert output.exit_code == 0


async def test_missing_program_is_reported(host: HostClient) -> None:
    with pytest.raises(NoSuchFile):
        await host.run_program(VM, ["/no/such/program"])


async def test_refused_stream_has_agent_error(host: HostClient) -> None:
    with pytest.raises(MachineBusy, match="stopped") as raised:
        await host.run_program(STOPPED, ["true"])
    assert raised.value.hint == "Start it first"
    with pytest.raises(NoSuchMachine):
        async with host.tcp(VM.replace("1", "9"), 80):
            pass
    with pytest.raises(ChannelLost):
        async with host.tcp(VM, 9):
            pass
    with pytest.raises(Invalid):
        async with host.tcp(VM, 70000):
            pass


async def test_closed_stream_ends_program(guest: tuple[HostClient, LocalGuest]) -> None:
    host, local = guest
    async with host.exec(VM, ExecRequest(argv=["sleep", "100"])) as process:
        await process.write(b"x")
        while not local.programs:
            await asyncio.sleep(0.01)
    await until_ended(local.programs[0].process.pid)


async def test_lost_client_ends_program(guest: tuple[HostClient, LocalGuest]) -> None:
    host, local = guest
    connection = await unix_connect(str(host._socket), f"ws://host/machines/{VM}/exec")
    await connection.send(ExecRequest(argv=["sleep", "100"]).model_dump_json())
    while not local.programs:
        await asyncio.sleep(0.01)
    connection.transport.abort()
    await until_ended(local.programs[0].process.pid)


async def test_lost_client_ends_program_that_does_not_read(
    guest: tuple[HostClient, LocalGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.hostagent.server.websocket_streams._HEARTBEAT_S", 0.2)
    host, local = guest
    connection = await unix_connect(str(host._socket), f"ws://host/machines/{VM}/exec")
    await connection.send(ExecRequest(argv=["sleep", "100"]).model_dump_json())

    async def flood() -> None:
        while True:
            await connection.send(b"x" * 60_000)

    flooding = asyncio.create_task(flood())
    await asyncio.sleep(1)
    assert not flooding.done()  # the program reads nothing, so the agent stops reading
    flooding.cancel()
    connection.transport.abort()
    await until_ended(local.programs[0].process.pid)


async def test_endless_output_is_throttled(
    guest: tuple[HostClient, LocalGuest],
) -> None:
    host, local = guest
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with host.exec(VM, ExecRequest(argv=["yes"])) as process:
        chunks = aiter(process)
        await anext(chunks)
        taken = -1
        async with asyncio.timeout(30):
            while local.programs[0].read_bytes != taken:  # until it stops
                taken = local.programs[0].read_bytes
                assert taken < 8_000_000
                await asyncio.sleep(0.5)
        for _ in range(50):
            await anext(chunks)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


async def test_excess_output_is_refused(host: HostClient) -> None:
    with pytest.raises(GuestMisbehaved):
        await host.run_program(VM, ["yes"], limit_bytes=100_000)


async def test_slow_program_is_killed(guest: tuple[HostClient, LocalGuest]) -> None:
    host, local = guest
    with pytest.raises(ChannelLost, match="did not exit"):
        await host.run_program(VM, ["sleep", "100"], timeout_s=0.5)
    await until_ended(local.programs[0].process.pid)


async def test_stderr_is_retained_while_only_stdout_is_read(host: HostClient) -> None:
    script = "import sys\nfor n in range(9999): print('e'*99, file=sys.stderr)\nprint('done')"
    async with host.exec(VM, ExecRequest(argv=[PYTHON, "-c", script])) as process:
        assert b"".join([chunk async for chunk in process.stdout()]) == b"done\n"
        assert process.exit_code == 0
        assert process.stderr_tail.endswith(b"eee\n")
        assert len(process.stderr_tail) == 16 * 1024


async def test_streams_are_distinct(host: HostClient) -> None:
    async with host.exec(VM, ExecRequest(argv=["sh", "-c", "echo a; echo b >&2"])) as process:
        seen = {stream: chunk async for stream, chunk in process}
    assert seen == {STDOUT: b"a\n", STDERR: b"b\n"}


async def test_tcp_carries_both_directions_and_half_closes(host: HostClient) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])  # answers after the end of input
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with host.tcp(VM, port) as stream:
            await stream.write(b"abc" * 100_000)
            await stream.write_eof()
            received = bytearray()
            while chunk := await stream.read(1000):
                assert len(chunk) <= 1000
                received += chunk
            assert received == b"cba" * 100_000


async def test_lost_tcp_client_closes_guest_connection(
    guest: tuple[HostClient, LocalGuest],
) -> None:
    host, _ = guest
    gone = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        async with host.tcp(VM, server.sockets[0].getsockname()[1]):
            pass
        await asyncio.wait_for(gone.wait(), 10)


async def test_http_reaches_port_in_machine(host: HostClient) -> None:
    async with MisbehavingServer() as port, host.http(VM, port, headers={"x-a": "b"}) as client:
        answers = await asyncio.gather(*(client.post("/echo", content=b"hi") for _ in range(5)))
        assert {answer.text for answer in answers} == {"POST /echo b 2"}
        assert (await client.get("/missing")).status_code == 404
        with pytest.raises(GuestMisbehaved):
            await client.get("/endless")
        with pytest.raises(GuestMisbehaved):
            await client.get("/compressed")
        with pytest.raises(ChannelLost):
            await client.get("/broken")
        with pytest.raises(ChannelLost):
            await client.get("/slow", timeout=0.3)


async def test_http_to_closed_port_is_an_error(host: HostClient) -> None:
    async with host.http(VM, 9) as client:
        with pytest.raises(ChannelLost):
            await client.get("/")


async def test_file_errors_are_reported(host: HostClient, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00\xff content")
    assert await host.read_file(VM, str(tmp_path / "a")) == b"\x00\xff content"
    with pytest.raises(NoSuchFile):
        await host.read_file(VM, str(tmp_path / "b"))


async def test_stopped_host_is_unreachable(tmp_path: Path) -> None:
    async with HostClient(tmp_path / "none.sock") as host:
        with pytest.raises(HostUnreachable):
            await host.health()
        with pytest.raises(HostUnreachable):
            await host.run("one", DestroyMachine(vm_id=VM), 5)
        with pytest.raises(HostUnreachable):
            await host.run_program(VM, ["true"])
        async with host.http(VM, 80) as client:
            with pytest.raises(HostUnreachable):
                await client.get("/")


async def test_malformed_request_is_invalid(host: HostClient) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(host._socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as raw:
        bodies = [b"", b"[]", b'{"kind":"machine.destroy","vm_id":"../x"}', b'{"kind":"x"}']
        for body in bodies:
            answer = await raw.put("/operations/one", content=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        for path in ("/machines/etc", "/operations/a%20b", f"/machines/{VM}/files"):
            answer = await raw.get(path)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        answer = await raw.put("/operations/one", content=b"x" * (8 * 1024 * 1024 + 1))
        assert answer.json()["code"] == "invalid"
        assert (await raw.get("/nowhere")).status_code == 404


@pytest.mark.parametrize("first", ["", "{}", '{"argv": []}', b"\x00"])
async def test_malformed_first_frame_ends_stream_with_error(
    host: HostClient, first: str | bytes
) -> None:
    async with unix_connect(str(host._socket), f"ws://host/machines/{VM}/exec") as connection:
        await connection.send(first)
        assert '"invalid"' in str(await connection.recv())


async def test_oversized_frame_ends_stream(host: HostClient) -> None:
    async with unix_connect(str(host._socket), f"ws://host/machines/{VM}/exec") as connection:
        await connection.send(ExecRequest(argv=["cat"]).model_dump_json())
        with contextlib.suppress(ConnectionClosedError):
            await connection.send(b"x" * 300_000)
        await connection.wait_closed()
        assert connection.close_code == 1009


class MisbehavingServer:
    """HTTP server that misbehaves on some paths."""

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        try:
            await self._speak(writer, method, path, headers, body)
            writer.close()
        except (ConnectionError, PolydevError):
            pass

    async def _speak(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        text = f"{method} {path} {headers.get('x-a')} {len(body)}".encode()
        match path:
            case "/echo":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
            case "/endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
            case "/compressed":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\nx")
            case "/broken":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
            case "/slow":
                await asyncio.sleep(2)
            case _:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
