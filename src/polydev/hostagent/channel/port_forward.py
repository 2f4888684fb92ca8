"""A TCP connection to a port on a machine's own 127.0.0.1, through the channel.

`Channel.open_tcp` makes it. Reading and writing wait for the other side, so nothing piles up.
"""

from __future__ import annotations

from contextlib import suppress

import asyncssh

from polydev.hostagent.channel.ssh_errors import translated
from polydev.shared.errors import ChannelLost


class TcpStream:
    """One connection; whoever holds it closes it."""

    def __init__(
        self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], port: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._what = f"The connection to port {port}"

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte and at most `max_bytes`; nothing at the end. Raises ChannelLost."""
        with translated(self._what):
            try:
                return await self._reader.read(max_bytes)
            except AssertionError:  # what asyncssh says to one who reads on where it has let go
                raise ChannelLost(f"{self._what} was cut") from None

    async def write(self, data: bytes) -> None:
        """Send; waits while the other side does not take it. Raises ChannelLost."""
        with translated(self._what):
            self._writer.write(data)
            await self._writer.drain()

    async def write_eof(self) -> None:
        """Say that no more will be sent."""
        with suppress(OSError):
            self._writer.write_eof()

    async def close(self) -> None:
        """Close both directions."""
        self._writer.close()
