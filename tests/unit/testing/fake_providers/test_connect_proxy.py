"""The proxy reaches the fake providers and nothing else."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from polydev.testing.fake_providers.call_log import CallLog
from polydev.testing.fake_providers.proxy import ConnectProxy
from polydev.testing.fake_providers.test_ca import ensure_authority


class Running:
    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.ca = folder / "ca.pem"
        self.call_log = folder / "calls.jsonl"

    async def raw(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    def client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.AsyncClient(proxy=f"http://127.0.0.1:{self.port}", verify=context)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Running]:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read())

    server = web.Server(echo)
    hosts = ("claude.com", "auth.openai.com")
    authority = ensure_authority(tmp_path, hosts)
    call_log = CallLog(tmp_path / "calls.jsonl")
    running = ConnectProxy(hosts, authority.server_context(), server, call_log)
    listening = await running.listen("127.0.0.1", 0)
    yield Running(listening.sockets[0].getsockname()[1], tmp_path)
    listening.close()
    await running.close()
    await server.shutdown(1)
    call_log.close()


async def test_provider_host_has_a_valid_certificate(proxy: Running) -> None:
    async with proxy.client() as client:
        for host in ("claude.com", "auth.openai.com"):
            answer = await client.post(f"https://{host}/x", content=b"a" * 300_000)
            assert answer.content == b"a" * 300_000


async def test_other_hosts_are_refused(proxy: Running) -> None:
    for target in ("example.com:443", "claude.com:80", "claude.com.evil.example:443"):
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
        answer = await proxy.raw(request)
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert f"does not reach {target}".encode() in answer
    assert '"proxy-refused"' in proxy.call_log.read_text()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"CONNECT claude.com HTTP/1.1\r\n\r\n",
        b"CONNECT claude.com:x HTTP/1.1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
async def test_only_connect_is_supported(proxy: Running, request_head: bytes) -> None:
    assert (await proxy.raw(request_head)).startswith(b"HTTP/1.1 405 ")


async def test_endless_request_head_is_bounded(proxy: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012
        for _ in range(200):
            writer.write(b"x" * 4096)
            await writer.drain()
        if not await asyncio.wait_for(reader.read(1), 10):
            raise EOFError
    writer.close()


async def test_client_without_the_ca_fails(proxy: Running) -> None:
    async with httpx.AsyncClient(proxy=f"http://127.0.0.1:{proxy.port}") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("https://claude.com/")
    async with proxy.client() as client:  # other clients are still served
        assert (await client.get("https://claude.com/")).status_code == 200
