"""Wait until a browser machine shows a page, through the agent's stream to Chromium.

Nothing is started in the machine for this: on an emulated processor, a program that checks would
take longer than the page itself. Source: chromedevtools.github.io/devtools-protocol,
`Page.captureScreenshot`, which answers when there is a picture to answer with.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from polydev.shared.errors import PolydevError
from polydev.shared.host_client import HostClient
from polydev.shared.host_client.streams import GuestStream

_PORT = 9222
_SERVICE_PORT = 8080
_RETRY_S = 0.1
_PICTURE_BYTES = 16 * 1024 * 1024
_CHUNK = 64 * 1024


async def wait_painted(host: HostClient, vm_id: str, limit_s: float) -> None:
    """Return when the machine's browser has painted a page. Raises: TimeoutError."""
    async with asyncio.timeout(limit_s):
        while True:
            with suppress(httpx.HTTPError, PolydevError, OSError, WebSocketException, ValueError):
                if await _is_painted(host, vm_id):
                    return
            await asyncio.sleep(_RETRY_S)  # no event reports the open port


async def wait_served(host: HostClient, vm_id: str, limit_s: float) -> None:
    """Return when the machine's browser service answers; a simulated one paints nothing."""
    async with asyncio.timeout(limit_s):
        while True:
            with suppress(httpx.HTTPError, PolydevError, OSError):
                async with host.http(vm_id, _SERVICE_PORT) as client:
                    await client.get("/health")
                    return
            await asyncio.sleep(_RETRY_S)


async def _is_painted(host: HostClient, vm_id: str) -> bool:
    async with host.http(vm_id, _PORT) as client:
        targets = (await client.get("/json/list")).json()
    pages = [target["webSocketDebuggerUrl"] for target in targets if target.get("type") == "page"]
    if not pages:
        return False
    async with (
        host.tcp(vm_id, _PORT) as stream,
        _socket_for(stream) as sock,
        connect(pages[0], sock=sock, max_size=_PICTURE_BYTES, proxy=None) as page,
    ):
        await page.send(json.dumps({"id": 1, "method": "Page.captureScreenshot"}))
        async for message in page:
            if (answer := json.loads(message)).get("id") == 1:
                return bool(answer.get("result", {}).get("data"))
    return False


@asynccontextmanager
async def _socket_for(stream: GuestStream) -> AsyncIterator[socket.socket]:
    """Connect a socket to the stream."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def out() -> None:
        while data := await reader.read(_CHUNK):
            await stream.write(data)

    async def back() -> None:
        while data := await stream.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    pumps = [asyncio.create_task(out()), asyncio.create_task(back())]
    try:
        yield ours
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        writer.close()
        ours.close()
