"""A simulated machine's channel without SSH: direct calls to programs, files and ports.

It implements the interface of `channel.Channel` on the machine's folder, in this process, so that a
load test measures controller and host agent instead of both ends of an SSH connection.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from polydev.hostagent.channel import Channel
from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.channel.files import validated_path
from polydev.shared.atomic_files import write_whole
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ChannelLost, GuestMisbehaved, NoSuchFile
from polydev.shared.host_protocol import STDERR, STDOUT, ExecRequest
from polydev.testing.simulated_vmm.programs.programs import Command, Programs

_SIGNALLED = 128

Ports = dict[int, Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]]
"""Opens a connection to each port of a machine."""


class DirectChannel:
    """The channel into one running machine, until it ends."""

    def __init__(
        self,
        root: Callable[[], Path],
        programs: Programs,
        ports: Ports,
        ended: asyncio.Event,
        over_ssh: Channel,
    ) -> None:
        """`root` is the machine's filesystem; `over_ssh` serves the file browser."""
        self._root = root
        self._programs = programs
        self._ports = ports
        self._ended = ended
        self._over_ssh = over_ssh

    async def connect(self, timeout_s: float | None = None) -> None:
        """Raise ChannelLost if the machine has ended."""
        if self._ended.is_set():
            raise ChannelLost("The machine is not running")

    def suspend_keepalive(self) -> None:
        self._over_ssh.suspend_keepalive()

    def resume_keepalive(self) -> None:
        self._over_ssh.resume_keepalive()

    async def close(self) -> None:
        await self._over_ssh.close()

    async def exec(self, request: ExecRequest) -> DirectProgram:
        await self.connect()
        return DirectProgram(self._programs, Command(tuple(request.argv), dict(request.env)))

    async def open_tcp(self, port: int) -> DirectConnection:
        await self.connect()
        if port not in self._ports:
            raise ChannelLost(f"Port {port} in the machine cannot be reached: Connection refused")
        return DirectConnection(*await self._ports[port]())

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        await self.connect()
        try:
            content = self._host_path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchFile(f"No {path} in the machine") from None
        except IsADirectoryError:
            raise GuestMisbehaved(f"{path} in the machine is not a regular file") from None
        if len(content) > max_bytes:
            raise GuestMisbehaved(f"{path} in the machine is larger than {max_bytes} bytes")
        return content

    async def write_files(self, files: Sequence[GuestFile]) -> None:
        await self.connect()
        for file in files:
            path = self._host_path(file.path)
            if file.if_absent and path.exists():
                continue
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, file.content, mode=file.mode, durable=False)

    async def remove_files(self, paths: Sequence[str]) -> None:
        await self.connect()
        for path in paths:
            self._host_path(path).unlink(missing_ok=True)

    def file_browser(self) -> FileBrowser:
        return self._over_ssh.file_browser()

    def _host_path(self, path: str) -> Path:
        return self._root() / validated_path(path).lstrip("/")


class DirectProgram:
    """A program of the simulation (`GuestProgram`)."""

    def __init__(self, programs: Programs, command: Command) -> None:
        self._process = _DirectProcess()
        self._serving = asyncio.create_task(programs.serve(command, self._process))

    async def read(self) -> tuple[int, bytes] | None:
        return await self._process.next()

    async def write(self, data: bytes) -> None:
        self._process.stdin.feed_data(data)

    async def write_eof(self) -> None:
        self._process.stdin.feed_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """Do nothing: it has no terminal."""

    async def send_signal(self, name: str) -> None:
        self._process.exit(_SIGNALLED + signal.Signals[f"SIG{name}"])
        self._serving.cancel()

    async def wait(self) -> int:
        await asyncio.wait({self._serving})
        return self._process.exit_code

    async def close(self) -> None:
        await self.send_signal("TERM")


class _DirectProcess:
    """The program's own side (`ServerProcess`)."""

    def __init__(self) -> None:
        self._output: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._ended = False
        self.exit_code = 1
        self.stdin = asyncio.StreamReader()
        self.stdout = _OutputPipe(STDOUT, self._output)
        self.stderr = _OutputPipe(STDERR, self._output)

    def exit(self, status: int) -> None:
        if not self._ended:
            self._ended, self.exit_code = True, status
            self._output.put_nowait(None)

    def close(self) -> None:
        self.exit(self.exit_code)

    async def next(self) -> tuple[int, bytes] | None:
        if self._ended and self._output.empty():
            return None
        return await self._output.get()


class DirectConnection:
    """A connection to a port of a simulated machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int) -> bytes:
        return await self._reader.read(max_bytes)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()


class _OutputPipe:
    def __init__(self, stream: int, output: asyncio.Queue[tuple[int, bytes] | None]) -> None:
        self._stream = stream
        self._output = output

    def write(self, data: bytes) -> None:
        self._output.put_nowait((self._stream, data))

    async def drain(self) -> None:
        """Do nothing: the output of simulated programs is small."""
