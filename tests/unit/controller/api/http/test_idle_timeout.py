"""Test silent and slow connections on a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from polydev.controller.api.http import idle_timeout, middleware
from polydev.controller.api.http.idle_timeout import IdleTimeoutProtocol
from polydev.controller.api.http.middleware import RequestGuard

LIMIT_S = 30
_REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Return the request body; echo over a WebSocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    body = (await receive())["body"]
    while len(body) < 2:
        body += (await receive())["body"]
    await asyncio.sleep(0.6)  # an answer may take longer than a request may take to begin
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(idle_timeout, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        RequestGuard(_app, "127.0.0.1", None),
        http=IdleTimeoutProtocol,
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve([listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(serving, LIMIT_S)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local"])
async def test_idle_connection_is_closed(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
    writer.close()


async def test_slow_response_keeps_its_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(_REQUEST + b"ok")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(2) == b"ok"
    writer.close()


async def test_silent_websocket_stays_open(port: int) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://127.0.0.1:{port}", proxy=None) as socket:
        await asyncio.sleep(0.6)
        await socket.send("still here")
        assert await asyncio.wait_for(socket.recv(), LIMIT_S) == "still here"


async def test_missing_body_times_out(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_REQUEST + b"o")
    answer = await asyncio.wait_for(reader.read(), LIMIT_S)
    assert b"200" not in answer
    writer.close()
