"""A program in a machine: its streams, exit, signals and clean-up.

`Channel.exec` starts it. Its holder closes it, or uses `async with`. sshd does not forward signals
to root's programs, so each program has an id in its environment (`RUN_ID`) by which it and its
children are found and signalled.

If the connection is lost, because the agent was killed, the program is ended too: on a terminal by
the hang-up, else by the signal that the kernel sends when its parent, sshd, ends (`setpriv`).
"""

from __future__ import annotations

import asyncio
import collections
import re
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import asyncssh

from polydev.hostagent.channel.limits import ChannelLimits
from polydev.shared.errors import ChannelLost, Invalid, PolydevError
from polydev.shared.host_protocol import STDERR, STDOUT

RUN_ID = "POLYDEV_RUN"
DEATH_SIGNAL = ("setpriv", "--pdeathsig", "TERM", "--")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIGNALS = frozenset({"INT", "TERM", "KILL", "HUP"})
_SIGNALLED = 128
_UNKNOWN_SIGNAL_EXIT = 255

_SIGNAL_SCRIPT = (
    'p=$(grep -lsz "^$2=$3\\$" /proc/[0-9]*/environ | cut -d/ -f3); [ -z "$p" ] || kill -s "$1" $p'
)


def command_line(
    argv: Sequence[str], env: Mapping[str, str], cwd: str | None, *, on_terminal: bool
) -> str:
    """Build the shell line that makes sshd run exactly `argv`. Raises: Invalid.

    SSH carries a line, not a list; every word is quoted, so that the shell changes none.
    """
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise Invalid("The program's name is missing")
    if any("\0" in word for word in (*argv, *env.values(), cwd or "")):
        raise Invalid("A program's arguments cannot contain a NUL byte")
    if bad := [name for name in env if not _VARIABLE.fullmatch(name)]:
        raise Invalid(f"{bad[0]!r} is not the name of an environment variable")
    if cwd and not cwd.startswith("/"):
        raise Invalid(f"The working folder {cwd!r} is not an absolute path")
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    program = shlex.join(argv if on_terminal else [*DEATH_SIGNAL, *argv])
    return (
        (f"export {variables}; " if env else "")
        + (f"cd {shlex.quote(cwd)} && " if cwd else "")
        + f"exec {program}"
    )


def signal_argv(run: str, name: str) -> list[str]:
    """Build the program that signals every process of a run. Raises: Invalid."""
    if name not in _SIGNALS:
        raise Invalid(f"{name!r} is not a supported signal")
    return ["sh", "-c", _SIGNAL_SCRIPT, "sh", name, RUN_ID, run]


class ProcessSession(asyncssh.SSHClientSession[bytes]):
    """asyncssh's session of a program: buffers output, and pauses the guest when full."""

    def __init__(self, high_water: int) -> None:
        self._high_water = high_water
        self._chunks: collections.deque[tuple[int, bytes]] = collections.deque()
        self._buffered = 0
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.exit_code: int | None = None
        self.eof = False
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        stream = STDERR if datatype == asyncssh.EXTENDED_DATA_STDERR else STDOUT
        self._chunks.append((stream, data))
        self._buffered += len(data)
        if self._buffered >= self._high_water and self._channel is not None:
            self._channel.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._changed.set()
        return True  # keeps the input open: a program may close its output first

    def exit_status_received(self, status: int) -> None:
        self._set_exit_code(status & 0xFF)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._set_exit_code(_exit_code_of_signal(signal))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None  # buffered output can still be read
        self.exited.set()
        self.closed.set()
        self._writable.set()
        self._changed.set()

    async def until_writable(self) -> None:
        await self._writable.wait()

    async def next_chunk(self, linger_s: float) -> tuple[int, bytes] | None:
        """Return the next chunk; None at the end. See ChannelLimits.linger_s."""
        while not self._chunks:
            if self.eof or self.closed.is_set():
                return None
            self._changed.clear()
            exited = self.exited.is_set()
            try:
                async with asyncio.timeout(linger_s if exited else None):
                    await self._changed.wait()
            except TimeoutError:
                return None
        stream, data = self._chunks.popleft()
        self._buffered -= len(data)
        if self._buffered < self._high_water and self._channel is not None:
            self._channel.resume_reading()
        return stream, data

    def _set_exit_code(self, code: int) -> None:
        self.exit_code = code
        self.exited.set()
        self._changed.set()


@dataclass(frozen=True, slots=True)
class ProcessBackend:
    """The channel's services for a program."""

    limits: ChannelLimits
    signal: Callable[[str], Awaitable[None]]
    """Sends a signal to the program and its children."""
    keep: Callable[[asyncio.Task[None]], None]
    """Keeps a task alive until it is done, even if its caller is cancelled."""
    on_terminal: bool


class RemoteProcess:
    """A program in a machine."""

    def __init__(
        self,
        channel: asyncssh.SSHClientChannel[bytes],
        session: ProcessSession,
        backend: ProcessBackend,
    ) -> None:
        self._channel = channel
        self._session = session
        self._backend = backend
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next chunk and its stream (STDOUT, STDERR); None at the end."""
        return await self._session.next_chunk(self._backend.limits.linger_s)

    async def write(self, data: bytes) -> None:
        """Send input; wait while the program does not read. Dropped after its exit."""
        await self._session.until_writable()
        with suppress(OSError):
            self._channel.write(data)
        await self._session.until_writable()

    async def write_eof(self) -> None:
        """Close the program's input."""
        with suppress(OSError):
            self._channel.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """Set the size of the program's terminal."""
        with suppress(OSError):
            self._channel.change_terminal_size(columns, rows)

    async def send_signal(self, name: str) -> None:
        """Send `INT`, `TERM`, `KILL` or `HUP` to the program and its children.

        Raises: Invalid, ChannelLost.
        """
        if not self._session.exited.is_set():
            await self._backend.signal(name)

    async def wait(self) -> int:
        """Return the exit code (128 + n for signal n). Raises: ChannelLost if it is unknown."""
        await self._session.exited.wait()
        if self._session.exit_code is None:
            raise ChannelLost("The connection to the machine was lost while a program ran")
        return self._session.exit_code

    async def close(self) -> None:
        """Release the program and end it if it still runs.

        Its children end with it; on a terminal it only hangs up, which background programs survive.
        Continues in the background when the caller is cancelled.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._end())
            self._backend.keep(self._closing)
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        try:
            if not self._backend.on_terminal:
                await self._end_by_signals()
        finally:
            self._channel.close()

    async def _end_by_signals(self) -> None:
        for name in ("TERM", "KILL"):
            if self._session.exited.is_set():
                return
            with suppress(PolydevError, TimeoutError):  # connection lost: the kernel ends it
                await self._backend.signal(name)
                async with asyncio.timeout(self._backend.limits.end_grace_s):
                    await self._session.exited.wait()


def terminal_options(pty: tuple[int, int] | None) -> dict[str, Any]:
    """Return asyncssh's options for a pseudo-terminal of (columns, rows), or for none."""
    if pty is None:
        return {"request_pty": False}
    return {"request_pty": "force", "term_type": "xterm-256color", "term_size": pty}


def _exit_code_of_signal(name: str) -> int:
    try:
        return _SIGNALLED + signal.Signals[f"SIG{name}"]
    except KeyError:
        return _UNKNOWN_SIGNAL_EXIT
