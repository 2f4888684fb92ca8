"""A program's view of itself in a simulated machine: its streams and its exit."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Where a program prints."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class Source(Protocol):
    """What a program reads."""

    async def read(self, n: int = -1) -> bytes: ...


class ServerProcess(Protocol):
    """What a program sees of itself: asyncssh's SSHServerProcess, or direct.py's."""

    @property
    def stdin(self) -> Source: ...
    @property
    def stdout(self) -> Sink: ...
    @property
    def stderr(self) -> Sink: ...
    def exit(self, status: int) -> None: ...
    def close(self) -> None: ...
