"""A TCP connection to a port on a machine's 127.0.0.1, through the channel.

Reads and writes wait for the other side, so that nothing piles up.
"""

from __future__ import annotations

from contextlib import suppress

import asyncssh

from polydev.hostagent.channel.ssh_errors import translate_errors
from polydev.shared.errors import ChannelLost


class TcpStream:
    """One connection; its holder closes it."""

    def __init__(
        self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], port: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._what = f"The connection to port {port}"

    async def read(self, max_bytes: int) -> bytes:
        """Read 1 to `max_bytes` bytes; empty at the end. Raises: ChannelLost."""
        with translate_errors(self._what):
            try:
                return await self._reader.read(max_bytes)
            except AssertionError:  # asyncssh raises it for a read after the connection is lost
                raise ChannelLost(f"{self._what} was lost") from None

    async def write(self, data: bytes) -> None:
        """Send; wait while the other side does not read. Raises: ChannelLost."""
        with translate_errors(self._what):
            self._writer.write(data)
            await self._writer.drain()

    async def write_eof(self) -> None:
        """Signal the end of the data."""
        with suppress(OSError):
            self._writer.write_eof()

    async def close(self) -> None:
        """Close both directions."""
        self._writer.close()
