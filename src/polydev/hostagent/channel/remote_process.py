"""A program that runs in a machine: its streams, its end, and its not outliving whom it runs for.

`Channel.exec` makes it; `streams.py` carries it to a WebSocket. Whoever holds one closes it, or
lets `async with` do so. sshd passes no signals on to root's programs, so each program carries a
name in its environment (`RUN`) by which it, and whatever it started, is found and signalled.

A program whose connection is cut, the agent being killed, is ended too: on a terminal by the
hang-up, else by the signal that the kernel sends when its parent, sshd, ends (`setpriv`).
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

RUN = "POLYDEV_RUN"
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
    """What sshd hands to the guest's shell so that exactly `argv` runs. Raises Invalid.

    SSH carries a line, not a list; every word is quoted, so the shell changes none of them.
    """
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise Invalid("A program to run needs a name")
    if any("\0" in word for word in (*argv, *env.values(), cwd or "")):
        raise Invalid("A program's arguments cannot hold a zero byte")
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
    """The program that sends a signal to every process of a run. Raises Invalid."""
    if name not in _SIGNALS:
        raise Invalid(f"{name!r} is not a signal that can be sent to a program")
    return ["sh", "-c", _SIGNAL_SCRIPT, "sh", name, RUN, run]


class Session(asyncssh.SSHClientSession[bytes]):
    """asyncssh's side of a program: keeps what came until it is read, and stops the guest at a
    full window."""

    def __init__(self, high_water: int) -> None:
        self._high_water = high_water
        self._chunks: collections.deque[tuple[int, bytes]] = collections.deque()
        self._buffered = 0
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._news = asyncio.Event()
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
        self._news.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._news.set()
        return True  # its input stays open: a program may close its output first

    def exit_status_received(self, status: int) -> None:
        self._exited(status & 0xFF)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._exited(_exit_code_of_signal(signal))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None  # what has come is still read; nothing more is asked of it
        self.exited.set()
        self.closed.set()
        self._writable.set()
        self._news.set()

    async def until_writable(self) -> None:
        await self._writable.wait()

    async def next_chunk(self, linger_s: float) -> tuple[int, bytes] | None:
        """What came next; None at the end. See ChannelLimits.linger_s."""
        while not self._chunks:
            if self.eof or self.closed.is_set():
                return None
            self._news.clear()
            exited = self.exited.is_set()
            try:
                async with asyncio.timeout(linger_s if exited else None):
                    await self._news.wait()
            except TimeoutError:
                return None
        stream, data = self._chunks.popleft()
        self._buffered -= len(data)
        if self._buffered < self._high_water and self._channel is not None:
            self._channel.resume_reading()
        return stream, data

    def _exited(self, code: int) -> None:
        self.exit_code = code
        self.exited.set()
        self._news.set()


@dataclass(frozen=True, slots=True)
class Backing:
    """What a program needs of the channel it runs on."""

    limits: ChannelLimits
    signal: Callable[[str], Awaitable[None]]
    """Sends a signal to the program and whatever it started."""
    keep: Callable[[asyncio.Task[None]], None]
    """Holds a task until it is done, whoever stops waiting for it."""
    on_terminal: bool


class Process:
    """A program in a machine."""

    def __init__(
        self, channel: asyncssh.SSHClientChannel[bytes], session: Session, backing: Backing
    ) -> None:
        self._channel = channel
        self._session = session
        self._backing = backing
        self._ending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self) -> tuple[int, bytes] | None:
        """The next chunk and its stream (STDOUT, STDERR); None when both have ended."""
        return await self._session.next_chunk(self._backing.limits.linger_s)

    async def write(self, data: bytes) -> None:
        """Give the program input; waits while it does not take it. Lost if it has ended."""
        await self._session.until_writable()
        with suppress(OSError):
            self._channel.write(data)
        await self._session.until_writable()

    async def write_eof(self) -> None:
        """End the program's input."""
        with suppress(OSError):
            self._channel.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the program's terminal its size."""
        with suppress(OSError):
            self._channel.change_terminal_size(columns, rows)

    async def send_signal(self, name: str) -> None:
        """Send `INT`, `TERM`, `KILL` or `HUP` to the program and whatever it started.

        Raises: Invalid, ChannelLost.
        """
        if not self._session.exited.is_set():
            await self._backing.signal(name)

    async def wait(self) -> int:
        """The exit code (128 + n for signal n). Raises ChannelLost if it cannot be told."""
        await self._session.exited.wait()
        if self._session.exit_code is None:
            raise ChannelLost("The connection to the machine was cut while a program ran")
        return self._session.exit_code

    async def close(self) -> None:
        """Forget the program, and end it if it still runs: with all that it started, or on a
        terminal by hanging up, which what was meant to stay survives.

        Goes on in the background when the caller is cancelled.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
            self._backing.keep(self._ending)
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            if not self._backing.on_terminal:
                await self._end_by_signals()
        finally:
            self._channel.close()

    async def _end_by_signals(self) -> None:
        for name in ("TERM", "KILL"):
            if self._session.exited.is_set():
                return
            with suppress(PolydevError, TimeoutError):  # cut: the kernel ends it
                await self._backing.signal(name)
                async with asyncio.timeout(self._backing.limits.end_grace_s):
                    await self._session.exited.wait()


def terminal_options(pty: tuple[int, int] | None) -> dict[str, Any]:
    """asyncssh's options for a program on a pseudo-terminal of (columns, rows), or on none."""
    if pty is None:
        return {"request_pty": False}
    return {"request_pty": "force", "term_type": "xterm-256color", "term_size": pty}


def _exit_code_of_signal(name: str) -> int:
    try:
        return _SIGNALLED + signal.Signals[f"SIG{name}"]
    except KeyError:
        return _UNKNOWN_SIGNAL_EXIT
