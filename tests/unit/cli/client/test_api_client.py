"""Client of the controller's HTTP API."""

from __future__ import annotations

import asyncio

import pytest

from polydev.cli.client.api_client import open_client

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def _answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection as the next request arrives."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)
    await reader.read(1)
    writer.close()


async def test_no_request_goes_to_a_closing_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await asyncio.start_server(_answer_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("POLYDEV_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("POLYDEV_TOKEN", "a-token-of-the-tests-only")
        async with open_client() as api:
            assert [await api.get("/health") for _ in range(2)] == [{}, {}]
