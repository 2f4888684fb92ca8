"""An SSH server that runs a test's code, and a channel to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from polydev.hostagent.channel import Channel, ChannelLimits

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
CLIENT_KEY = asyncssh.generate_private_key("ssh-ed25519")
LIMITS = ChannelLimits(
    connect_s=30, open_s=2, files_s=5, linger_s=0.2, end_grace_s=0.2, stream_window=64 * 1024
)
Session = Callable[[Any], Awaitable[None]]


class Peer:
    """An SSH server whose sessions run the test's `program`."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.options: dict[str, Any] = {"server_host_keys": [HOST_KEY]}
        self.program: Session | None = None

    async def open(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.sockets.append(theirs)
        self.tasks.append(asyncio.create_task(self._serve(theirs)))
        return ours

    async def _serve(self, sock: socket.socket) -> None:
        try:
            connection = await asyncssh.run_server(
                sock,
                server_factory=_NoAuthServer,
                process_factory=self._run,
                encoding=None,
                line_editor=False,
                **self.options,
            )
        except (asyncssh.Error, OSError):
            return
        self.connections.append(connection)
        await connection.wait_closed()

    async def _run(self, process: Any) -> None:
        assert self.program is not None
        await self.program(process)

    def cut(self) -> None:
        for connection in self.connections:
            connection.abort()


class _NoAuthServer(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


def channel_to(open_socket: Callable[[], Awaitable[socket.socket]]) -> Channel:
    return Channel(
        open_socket,
        HOST_KEY.export_public_key().decode(),
        CLIENT_KEY.export_private_key().decode(),
        LIMITS,
    )
