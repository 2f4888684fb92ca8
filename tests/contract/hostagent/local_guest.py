"""Serve the local host in place of a guest.

Replaces the machine service behind the server, so that client, wire and server are real.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn

from polydev.hostagent.__main__ import server_config
from polydev.hostagent.operations.journal import OperationJournal
from polydev.hostagent.operations.operations import Operations
from polydev.hostagent.resources.resource_usage import UsageLog
from polydev.hostagent.server import routes
from polydev.hostagent.server.single_instance import listening
from polydev.shared.domain import Finding
from polydev.shared.errors import ChannelLost, MachineBusy, NoSuchFile, NoSuchMachine
from polydev.shared.host_protocol import STDERR, STDOUT, ExecRequest, Health

VM = "vm-00000000-0000-4000-8000-000000000001"
STOPPED = "vm-00000000-0000-4000-8000-000000000002"
CHUNK = 32 * 1024


class LocalProgram:
    """Subprocess as `GuestProgram`; reads only on request."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.read_bytes = 0
        self._chunks: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(1)
        self._pumping = asyncio.create_task(self._pump_both())

    async def _pump_both(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(STDOUT, self.process.stdout))
            group.create_task(self._pump(STDERR, self.process.stderr))
        await self._chunks.put(None)

    async def _pump(self, stream: int, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            await self._chunks.put((stream, data))

    async def read(self) -> tuple[int, bytes] | None:
        chunk = await self._chunks.get()
        self.read_bytes += len(chunk[1]) if chunk else 0
        return chunk

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(data)
            await self.process.stdin.drain()

    async def write_eof(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def resize(self, columns: int, rows: int) -> None:
        return

    async def send_signal(self, name: str) -> None:
        self.process.send_signal(signal.Signals[f"SIG{name}"])

    async def wait(self) -> int:
        code = await self.process.wait()
        return code if code >= 0 else 128 - code

    async def close(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process._transport.close()  # type: ignore[attr-defined]
        self._pumping.cancel()


class LocalConnection:
    """TCP connection as `GuestConnection`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.is_closed = False

    async def read(self, max_bytes: int) -> bytes:
        try:
            return await self._reader.read(max_bytes)
        except ConnectionError:
            raise ChannelLost("cut") from None

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            raise ChannelLost("cut") from None

    async def write_eof(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        self.is_closed = True
        self._writer.close()


class LocalGuest:
    """Machine service that acts on the local host."""

    def __init__(self) -> None:
        self.programs: list[LocalProgram] = []
        self.connections: list[LocalConnection] = []

    def require_running(self, vm_id: str) -> None:
        if vm_id == STOPPED:
            raise MachineBusy(f"Machine {vm_id} is stopped", hint="Start it first")
        if vm_id != VM:
            raise NoSuchMachine(f"No machine {vm_id} on this host")

    async def exec(self, vm_id: str, request: ExecRequest) -> LocalProgram:
        self.require_running(vm_id)
        try:
            process = await asyncio.create_subprocess_exec(
                *request.argv,
                env={"PATH": os.environ["PATH"], **request.env},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=CHUNK,
            )
        except FileNotFoundError:
            raise NoSuchFile(f"{request.argv[0]} is not there") from None
        self.programs.append(LocalProgram(process))
        return self.programs[-1]

    async def open_tcp(self, vm_id: str, port: int) -> LocalConnection:
        self.require_running(vm_id)
        try:
            streams = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK)
        except ConnectionRefusedError:
            raise ChannelLost(f"No process listens on port {port}") from None
        self.connections.append(LocalConnection(*streams))
        return self.connections[-1]

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> bytes:
        self.require_running(vm_id)
        try:
            return await asyncio.to_thread(Path(path).read_bytes)
        except FileNotFoundError:
            raise NoSuchFile(f"No {path}") from None

    def vmm_pids(self) -> dict[str, int]:
        return {}

    def known(self) -> list[str]:
        return [VM, STOPPED]

    async def perform(self, operation: object) -> None:
        return


@asynccontextmanager
async def serve_local_guest(folder: Path) -> AsyncIterator[tuple[Path, LocalGuest]]:
    """Run the real server over a local guest; yield its socket and the guest."""
    guest = LocalGuest()
    operations = Operations(OperationJournal(folder / "operations"), guest.perform)
    await operations.open()

    async def health() -> Health:
        return Health(version="0", driver="local", accelerator="none")

    async def diagnose() -> list[Finding]:
        return []

    with listening(folder / "h.sock", None) as listener:
        usage = UsageLog(guest)
        app = routes.build(guest, operations, health, diagnose, usage, None)  # type: ignore[arg-type]
        http = uvicorn.Server(server_config(app))
        http.capture_signals = suppress  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(http.serve(sockets=[listener]))
        try:
            await asyncio.to_thread(_until_answered, folder / "h.sock")
            yield folder / "h.sock", guest
        finally:
            http.should_exit = True
            await task


def _until_answered(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(10)
        probe.connect(str(path))
        probe.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert probe.recv(64).startswith(b"HTTP/1.1 200")
