"""Bounded logs of the guest's console and of the VMM's error output.

Only the agent writes them. It reads at a bounded rate; a guest that prints faster waits for its own
serial port, so endless output costs its own time and hardly any of the host's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

CONSOLE_LOG_BYTES = 1024 * 1024
ERROR_LOG_BYTES = 256 * 1024

_CHUNK = 64 * 1024
_TAIL_BYTES = 2048
_BURST_BYTES = 1024 * 1024
_BYTES_PER_S = 256 * 1024
_READ_INTERVAL_S = 0.005
"""Pause between reads: QEMU forwards serial output in pieces of a few bytes."""


class BoundedLog:
    """A log of at most `limit_bytes`; when full, its older half is dropped. Blocking."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self.tail = b""
        """The last bytes received, written to disk or not."""

    def move(self, path: Path) -> None:
        """Continue at another path, after a rename of the folder. Does not block."""
        self._path = path

    def append(self, content: bytes) -> None:
        """Append `content`. A full disk loses the log, not the machine."""
        self.set_tail(content)
        self.write(content)

    def set_tail(self, content: bytes) -> None:
        """Remember the latest output before it is written. Does not block."""
        self.tail = (self.tail + content)[-_TAIL_BYTES:]

    def write(self, content: bytes) -> None:
        """Write remembered output to disk."""
        with suppress(OSError):
            size = self._write(self._path, os.O_APPEND, content)
            if size > self._limit_bytes:
                self._drop_older_half(size)

    def _drop_older_half(self, size: int) -> None:
        with self._path.open("rb") as file:
            file.seek(size - self._limit_bytes // 2)
            file.readline()
            newer = file.read(self._limit_bytes // 2)
        temporary = self._path.with_name(f".{self._path.name}.new")
        self._write(temporary, os.O_TRUNC, newer)
        temporary.replace(self._path)

    @staticmethod
    def _write(path: Path, flag: int, content: bytes) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flag
        with os.fdopen(os.open(path, flags, 0o640), "ab") as file:
            file.write(content)
            return file.tell()


class Marker:
    """Searches a stream of chunks for one word."""

    def __init__(self, word: str) -> None:
        self._word = word.encode()
        self._rest = b""
        self.seen = asyncio.Event()

    def feed(self, content: bytes) -> None:
        if self.seen.is_set():
            return
        text = self._rest + content
        if self._word in text:
            self.seen.set()
        self._rest = text[-len(self._word) :]


class LogReader:
    """Copies a stream of the VMM to a log, at a bounded rate."""

    def __init__(self, log: BoundedLog, marker: Marker | None = None) -> None:
        self.log = log
        self._marker = marker
        self._credit = float(_BURST_BYTES)
        self._last_s = 0.0

    async def read_console(self, connected: socket.socket) -> None:
        """Read a connected, non-blocking socket until EOF."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while content := await loop.sock_recv(connected, _CHUNK):
                await self._store(content)

    async def read_pipe(self, fifo: int) -> None:
        """Read a non-blocking pipe until cancelled."""
        while True:
            await _readable(fifo)
            await self.drain_pipe(fifo)

    async def drain_pipe(self, fifo: int) -> None:
        """Read the pipe's current content, at most one buffer."""
        with suppress(OSError):
            if content := os.read(fifo, _CHUNK):
                await self._store(content)

    async def _store(self, content: bytes) -> None:
        if self._marker is not None:
            self._marker.feed(content)
        self.log.set_tail(content)
        writing = asyncio.ensure_future(asyncio.to_thread(self.log.write, content))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:  # these bytes cannot be read again
            await writing
            raise
        await asyncio.sleep(max(_READ_INTERVAL_S, self._pause_s(len(content))))

    def _pause_s(self, size: int) -> float:
        """Return the pause after `size` bytes, from a token bucket."""
        now_s = asyncio.get_running_loop().time()
        earned = (now_s - self._last_s) * _BYTES_PER_S
        self._credit = min(_BURST_BYTES, self._credit + earned) - size
        self._last_s = now_s
        return -self._credit / _BYTES_PER_S


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
