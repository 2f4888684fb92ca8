"""The interface of the private channel into a running machine.

`machines/` uses it, `server/` forwards its streams; the simulated driver implements it without SSH.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.shared.domain import GuestFile
from polydev.shared.host_protocol import ExecRequest


class GuestProgram(Protocol):
    """A program running in a machine."""

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next chunk and its stream (STDOUT, STDERR); None at the end."""

    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def resize(self, columns: int, rows: int) -> None: ...
    async def send_signal(self, name: str) -> None: ...
    async def wait(self) -> int: ...
    async def close(self) -> None:
        """Release the program, and end it if it still runs."""


class GuestConnection(Protocol):
    """A TCP connection to a machine's 127.0.0.1."""

    async def read(self, max_bytes: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def close(self) -> None: ...


class GuestChannel(Protocol):
    """The private channel into a running machine (`channel.Channel`)."""

    async def connect(self, timeout_s: float | None = None) -> None:
        """Wait until the machine answers. Raises: ChannelLost."""

    def suspend_keepalive(self) -> None:
        """Stop keepalives before the guest pauses, until `resume_keepalive`."""

    def resume_keepalive(self) -> None:
        """Start keepalives again: the guest runs."""

    async def exec(self, request: ExecRequest) -> GuestProgram: ...
    async def open_tcp(self, port: int) -> GuestConnection: ...
    async def read_file(self, path: str, max_bytes: int) -> bytes: ...
    async def write_files(self, files: Sequence[GuestFile]) -> None: ...
    async def remove_files(self, paths: Sequence[str]) -> None: ...
    def file_browser(self) -> FileBrowser:
        """Return access to the machine's files for its user."""

    async def close(self) -> None: ...
