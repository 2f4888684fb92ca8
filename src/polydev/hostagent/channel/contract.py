"""The interface of the private channel into a running machine.

`machines/` uses it, `server/` carries its streams, `SimulatedDriver` implements it without SSH.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polydev.hostagent.channel.file_browser import GuestFiles
from polydev.shared.domain import GuestFile
from polydev.shared.host_protocol import ExecRequest


class GuestProgram(Protocol):
    """A program that runs in a machine."""

    async def read(self) -> tuple[int, bytes] | None:
        """The next chunk and its stream (STDOUT, STDERR); None when both have ended."""

    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def resize(self, columns: int, rows: int) -> None: ...
    async def send_signal(self, name: str) -> None: ...
    async def wait(self) -> int: ...
    async def close(self) -> None:
        """End it, if it still runs."""


class GuestConnection(Protocol):
    """A TCP connection to a machine's 127.0.0.1."""

    async def read(self, max_bytes: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def close(self) -> None: ...


class GuestChannel(Protocol):
    """The private way into a running machine (channel.Channel)."""

    async def connect(self, timeout_s: float | None = None) -> None:
        """Return when the machine answers. Raises ChannelLost."""

    def rest(self) -> None:
        """The guest is about to stand still: until `wake`, its silence means nothing."""

    def wake(self) -> None:
        """The guest goes on."""

    async def exec(self, request: ExecRequest) -> GuestProgram: ...
    async def open_tcp(self, port: int) -> GuestConnection: ...
    async def read_file(self, path: str, max_bytes: int) -> bytes: ...
    async def write_files(self, files: Sequence[GuestFile]) -> None: ...
    async def remove_files(self, paths: Sequence[str]) -> None: ...
    def guest_files(self) -> GuestFiles:
        """For people who look around in their machine."""

    async def close(self) -> None: ...
