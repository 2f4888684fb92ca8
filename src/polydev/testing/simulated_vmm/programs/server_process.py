"""A program's own side of its process in a simulated machine: streams and exit."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """A program's output."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class Source(Protocol):
    """A program's input."""

    async def read(self, n: int = -1) -> bytes: ...


class ServerProcess(Protocol):
    """Implemented by asyncssh's SSHServerProcess and by `direct_channel.py`."""

    @property
    def stdin(self) -> Source: ...
    @property
    def stdout(self) -> Sink: ...
    @property
    def stderr(self) -> Sink: ...
    def exit(self, status: int) -> None: ...
    def close(self) -> None: ...
