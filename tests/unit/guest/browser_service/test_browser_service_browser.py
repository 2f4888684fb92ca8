"""A URL gets from the CLI's BROWSER script to Chromium's debugging port unchanged."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from aiohttp import web
from login_recipes import URL

from polydev.guest.browser_service import settings
from polydev.guest.browser_service.chromium import BrowserUnavailable, open_page
from polydev.guest.browser_service.url_fifo import UrlFifo

OPEN_URL = settings.ServiceSettings().open_url


class Inbox:
    def __init__(self, folder: Path) -> None:
        self.urls: asyncio.Queue[str] = asyncio.Queue()
        self.fifo = UrlFifo(folder / "fifo", self.urls.put_nowait)

    async def next(self) -> str:
        return await asyncio.wait_for(self.urls.get(), 10)

    async def hand_over(self, *arguments: str) -> int:
        environment = {"PATH": "/usr/bin:/bin", "POLYDEV_URL_FIFO": str(self.fifo.path)}
        process = await asyncio.create_subprocess_exec(OPEN_URL, *arguments, env=environment)
        return await process.wait()


@pytest.fixture
async def fifo(tmp_path: Path) -> AsyncIterator[Inbox]:
    made = Inbox(tmp_path)
    yield made
    made.fifo.close()
    assert not (tmp_path / "fifo").exists()


async def test_open_url_delivers_the_url(fifo: Inbox) -> None:
    for url in (URL, "https://id.example.test/$(touch x)`id`?a='\"&b=*"):
        assert await fifo.hand_over(url) == 0
        assert await fifo.next() == url


async def test_the_script_needs_a_url_and_the_service(fifo: Inbox) -> None:
    assert await fifo.hand_over() == 1
    assert await fifo.hand_over("") == 1
    done = await asyncio.to_thread(
        subprocess.run, [OPEN_URL, URL], env={"PATH": "/usr/bin:/bin"}, check=False
    )
    assert done.returncode == 1


async def test_long_lines_are_dropped(fifo: Inbox) -> None:
    with fifo.fifo.path.open("wb", buffering=0) as writer:
        await asyncio.to_thread(writer.write, b"x" * 60_000 + b"\n")
        await asyncio.to_thread(writer.write, b"\n\n" + URL.encode() + b"\n")
    while (got := await fifo.next()) != URL:
        assert set(got) == {"x"}
        assert len(got) <= settings.URL_CHARACTERS


async def test_only_root_may_write(fifo: Inbox) -> None:
    assert fifo.fifo.path.stat().st_mode & 0o777 == 0o600


class DebuggingPort:
    """Answer like Chromium, after a few failures as during its start."""

    def __init__(self) -> None:
        self.failures = 2
        self.calls: list[str] = []

    async def new(self, request: web.Request) -> web.Response:
        if self.failures:
            self.failures -= 1
            raise web.HTTPServiceUnavailable
        self.calls.append(unquote(request.rel_url.raw_query_string))
        return web.json_response({"description": "", "id": "AB-12", "type": "page"})

    async def activate(self, request: web.Request) -> web.Response:
        self.calls.append(request.match_info["id"])
        return web.Response(text="Target activated")


async def test_page_is_opened_and_activated() -> None:
    port = DebuggingPort()
    app = web.Application()
    app.add_routes([web.put("/json/new", port.new), web.get("/json/activate/{id}", port.activate)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    number = runner.addresses[0][1]
    await open_page(number, URL, 20)
    assert port.calls == [URL, "AB-12"]
    await runner.cleanup()
    with pytest.raises(BrowserUnavailable, match="no page in 1 s"):
        await open_page(number, URL, 1)
