"""A minimal RFB client for tests of the live view."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from polydev.shared.domain import MachineKind, SessionId, vm_id_for
from polydev.shared.errors import NoSuchFile
from polydev.shared.host_client import HostClient
from polydev.testing.simulated_vmm.browser.screen import EVENT_LOG

ENTER = 0xFF0D


class RfbClient:
    """An RFB client over a WebSocket, like noVNC."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._pending = b""

    async def shake_hands(self) -> tuple[int, int]:
        """Do the handshake; return the size of the screen."""
        version = await self._read(12)
        assert version == b"RFB 003.008\n"
        await self.socket.send(version)
        (count,) = await self._read(1)
        assert 1 in await self._read(count)
        await self.socket.send(b"\1")
        assert await self._read(4) == bytes(4)
        await self.socket.send(b"\1")
        width, height, _, length = struct.unpack("!HH16sI", await self._read(24))
        await self._read(length)
        await self.socket.send(struct.pack("!BxHi", 2, 1, 0))  # raw alone
        return width, height

    async def picture(self) -> bytes:
        """Request the next changed rectangle, at first the whole screen."""
        await self.socket.send(struct.pack("!BBHHHH", 3, 0, 0, 0, 0xFFFF, 0xFFFF))
        _, count, _, _, width, height, encoding = struct.unpack("!BxHHHHHi", await self._read(16))
        assert (count, encoding) == (1, 0)
        return await self._read(width * height * 4)

    async def key(self, keysym: int) -> None:
        for is_down in (1, 0):
            await self.socket.send(struct.pack("!BBxxI", 4, is_down, keysym))

    async def click(self, x: int, y: int) -> None:
        for buttons in (1, 0):
            await self.socket.send(struct.pack("!BBHH", 5, buttons, x, y))

    async def _read(self, count: int) -> bytes:
        while len(self._pending) < count:
            part = await self.socket.recv()
            assert isinstance(part, bytes)
            self._pending += part
        read, self._pending = self._pending[:count], self._pending[count:]
        return read


async def ticket_for(client: httpx.AsyncClient, session_id: str) -> str:
    answer = await client.post(f"/api/auth/session/{session_id}/view")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


def view_url(client: httpx.AsyncClient, session_id: str, ticket: str) -> str:
    base = str(client.base_url).replace("http", "ws", 1).rstrip("/")
    return f"{base}/api/auth/session/{session_id}/view?ticket={ticket}"


@asynccontextmanager
async def open_live_view(
    client: httpx.AsyncClient, session_id: str, **options: Any
) -> AsyncIterator[RfbClient]:
    """Open a live view with a client's credentials."""
    url = view_url(client, session_id, await ticket_for(client, session_id))
    async with connect(url, additional_headers=auth_headers(client), **options) as socket:
        yield RfbClient(socket)


def auth_headers(client: httpx.AsyncClient) -> dict[str, str]:
    """An API client's authentication as headers of a WebSocket."""
    if "authorization" in client.headers:
        return {"Authorization": client.headers["authorization"]}
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    return {"Cookie": cookie, "Origin": str(client.base_url).rstrip("/")}


async def wait_for_screen_events(
    host: HostClient, session_id: str, count: int
) -> list[dict[str, Any]]:
    """Wait for `count` input events on the session's simulated screen; return them."""
    vm_id = vm_id_for(SessionId(session_id), MachineKind.BROWSER)
    async with asyncio.timeout(60):
        while True:
            with suppress(NoSuchFile):
                events = await host.read_file(vm_id, f"/{EVENT_LOG}")
                if events.count(b"\n") >= count:
                    return [json.loads(line) for line in events.splitlines()]
            await asyncio.sleep(0.05)
