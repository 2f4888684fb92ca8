"""Debian's Chromium for tests: one per process, a window per test.

A test asks the fixture `chromium` (tests/conftest.py) for a `Visit`:

    async with chromium.visit(f"http://127.0.0.1:{port}") as visit:
        await visit.sign_up(world.controller, "ann")
        await visit.open("/settings")
        await visit.assert_accessible()

Faults of a page fail the test at the end of the visit: console errors, exceptions, CSP reports,
missing files. Problem responses of the API are not faults.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from api_users import PASSWORD
from controller_process import ControllerProcess
from playwright.async_api import (
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    async_playwright,
    expect,
)

from polydev.controller.web.rendering.assets import default_folder

PROGRAM = "/usr/bin/chromium"
LAPTOP = (1280, 800)
PHONE = (360, 740)

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
    "--no-startup-window",  # a page that is still opening can stall who connects
)
_CACHE = Path(os.environ.get("POLYDEV_CACHE_DIR", "/var/cache/polydev"))
_LIMIT_S = 60
expect.set_options(timeout=_LIMIT_S * 1000)

_AXE = Path("axe-core/axe.min.js")
_AXE_RUN = """async (options) => {
  const found = await axe.run(document, options);
  return found.violations.map(({ id, impact, help, nodes }) => ({
    id, impact, help,
    nodes: nodes.slice(0, 4).map((it) => `${it.target.join(" ")}: ${it.failureSummary}`),
  }));
}"""


class Chromium:
    """A running Chromium."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @asynccontextmanager
    async def visit(
        self,
        url: str,
        *,
        size: tuple[int, int] = LAPTOP,
        scheme: Literal["light", "dark"] = "light",
        **options: Any,
    ) -> AsyncIterator[Visit]:
        """Open a fresh window on the site at `url`; fails at the end if a page had faults."""
        async with async_playwright() as playwright:
            async with _with_stall_limit("begin"):
                browser = await playwright.chromium.connect_over_cdp(self._endpoint)
                width, height = size
                context = await browser.new_context(
                    base_url=url,
                    viewport={"width": width, "height": height},
                    is_mobile=size == PHONE,
                    has_touch=size == PHONE,
                    color_scheme=scheme,
                    locale="en-GB",
                    timezone_id="UTC",
                    **options,
                )
                context.set_default_timeout(_LIMIT_S * 1000)
                visit = Visit(context, await context.new_page(), url)
            try:
                yield visit
                await visit.assert_faultless()
            finally:
                with suppress(Exception):
                    async with _with_stall_limit("end"):
                        await context.close()
                        await browser.close()


@asynccontextmanager
async def _with_stall_limit(what: str) -> AsyncIterator[None]:
    """Set a limit for operations without one in Playwright."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            yield
    except TimeoutError:
        raise AssertionError(f"Chromium did not {what} within {_LIMIT_S} s") from None


class Visit:
    """A user's window."""

    def __init__(self, context: BrowserContext, page: Page, url: str) -> None:
        self.context = context
        self.page = page
        self.url = url
        self.faults: list[str] = []
        self._is_server_down = False
        self._watch(page)
        context.on("page", self._watch)

    async def open(self, path: str) -> Response | None:
        """Go to a page."""
        return await self.page.goto(path, wait_until="load")

    async def another_page(self) -> Page:
        """Open a second tab."""
        return await self.context.new_page()

    async def sign_up(self, controller: ControllerProcess, name: str, role: str = "person") -> str:
        """Invite a user and sign them up in this window by API calls; their unique address."""
        invited = await controller.call("POST", "/api/admin/invitations", {"role": role})
        email = f"{name}-{secrets.token_hex(3)}@example.org"
        asked = {"email": email, "password": PASSWORD, "invitation": invited["code"]}
        answer = await self.context.request.post("/api/account/sign-up", data=asked)
        assert answer.status == 201, await answer.text()
        return email

    async def sign_in(self, email: str, password: str = PASSWORD) -> None:
        """Sign in in this window by an API call."""
        asked = {"email": email, "password": password}
        answer = await self.context.request.post("/api/account/sign-in", data=asked)
        assert answer.status == 200, await answer.text()

    async def assert_accessible(self) -> None:
        """Check for serious axe-core findings and horizontal overflow."""
        source = await asyncio.to_thread((packages() / _AXE).read_text)
        async with _with_stall_limit("look at how accessible the page is"):
            await self.page.evaluate(source)
            found = await self.page.evaluate(_AXE_RUN, {"resultTypes": ["violations"]})
            wide = await self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        bad = [it for it in found if it["impact"] in ("serious", "critical")]
        assert not bad, "\n".join(f"{it['id']}: {it['help']}\n  {it['nodes']}" for it in bad)
        assert wide <= 0, f"the page is {wide} px wider than the window"

    async def assert_faultless(self) -> None:
        """Check that no page had faults."""
        await self._receive_pending_faults()
        assert not self.faults, "\n".join(self.faults)

    @asynccontextmanager
    async def server_outage(self) -> AsyncIterator[None]:
        """Accept failed requests to the site inside the block: its server is down."""
        self._is_server_down = True
        try:
            yield
            await self._receive_pending_faults()
        finally:
            self._is_server_down = False

    async def _receive_pending_faults(self) -> None:
        """Wait until the page answers: what it reported before has arrived then."""
        with suppress(Exception):
            async with _with_stall_limit("answer"):
                await self.page.evaluate("1")

    def _watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        where = message.location.get("url", "")
        # The console reports every failed response; `_response` decides which are faults.
        if re.match("Failed to load resource: the server responded", message.text):
            return
        if self._is_server_down and is_failed_connection(message.text, where, self.url):
            return
        self.faults.append(f"console {message.type}: {message.text} at {where}")

    def _request(self, request: Request) -> None:
        if urlsplit(request.url).path == "/csp-report":
            self.faults.append(f"Content-Security-Policy: {request.post_data}")
        if request.url.startswith("http") and not request.url.startswith(self.url):
            self.faults.append(f"a request to elsewhere: {request.url}")

    def _response(self, response: Response) -> None:
        path = urlsplit(response.url).path
        is_file = path.startswith(("/static/", "/fragments/")) or path == "/favicon.ico"
        if response.status >= 500 or (is_file and response.status >= 400):
            self.faults.append(f"{response.status} for {path}")


def is_failed_connection(text: str, where: str, site: str) -> bool:
    """True for a console message about a connection to `site` that failed or broke.

    Chromium has a code for each moment: refused, reset, closed, without an answer, in its middle.
    """
    if text.startswith("Failed to load resource: net::ERR_"):
        return where.startswith(f"{site}/")
    return text.startswith(f"WebSocket connection to 'ws{site.removeprefix('http')}/")


def packages() -> Path:
    """Folder of the pages' npm packages."""
    return default_folder(_CACHE)


@contextmanager
def running_chromium() -> Iterator[Chromium]:
    """Run a Chromium, and end it with all its processes."""
    profile = Path(tempfile.mkdtemp(prefix="polydev-chromium-"))
    process = subprocess.Popen(
        # The kernel kills it when the test process dies.
        ["setpriv", "--pdeathsig=KILL", PROGRAM, *_ARGUMENTS, f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "HOME": str(profile)},
        start_new_session=True,
    )
    try:
        yield Chromium(_endpoint(process))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)


def _endpoint(process: subprocess.Popen[bytes]) -> str:
    """Read the DevTools endpoint from its output."""
    assert process.stderr is not None
    output = []
    for line in process.stderr:
        output.append(line.decode(errors="replace"))
        found = re.search(r"DevTools listening on (ws://\S+)", output[-1])
        if found:
            _drain(process)
            return found[1]
    raise AssertionError(f"Chromium did not start: {''.join(output[-20:])}")


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Discard further output, so that Chromium never blocks on it."""
    import threading

    stream = process.stderr
    assert stream is not None
    threading.Thread(target=lambda: [None for _ in stream], daemon=True).start()
