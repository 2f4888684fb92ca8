"""One login of one CLI, from its start to complete credentials or a failure.

It owns the CLI's process, the URL that the CLI wants to open, and the result.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
from yarl import URL

from .chromium import BrowserUnavailable, open_page
from .cli_process.agent import Agent
from .cli_process.terminal import Terminal
from .recipes import LoginKind, LoginRecipe
from .settings import (
    CALLBACK_TIMEOUT_S,
    REPORTED_OUTPUT_BYTES,
    URLS_PER_LOGIN,
    ServiceSettings,
)
from .validation import urls
from .validation.credentials import (
    CredentialsIncomplete,
    FileIdentity,
    identity_of,
    read_credentials,
)
from .validation.redaction import reportable

log = logging.getLogger(__name__)

CALLBACK_REDIRECTS = 5


class Step(StrEnum):
    """State of a login; the last two are final."""

    STARTING = "starting"
    WAITING_FOR_USER = "waiting_for_person"
    READY = "ready"
    FAILED = "failed"


class PasteRefused(Exception):
    """The pasted text is not usable; the message has the reason."""


class NotWaiting(Exception):
    """The CLI is not waiting for this input."""


@dataclass
class Login:
    session_id: str
    recipe: LoginRecipe
    settings: ServiceSettings
    step: Step = Step.STARTING
    url: urls.AuthorizationUrl | None = None
    own_browser_url: urls.AuthorizationUrl | None = None
    opened: bool = False  # the URL is open in this machine's Chromium
    browser_error: str = ""
    credentials: dict[str, Any] | None = None
    reason: str = ""
    version: int = 0  # grows with every visible change
    _cli: Terminal | Agent | None = None
    _urls_seen: int = 0
    _typed: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _opening: asyncio.Task[None] | None = None

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the CLI until it exits or times out, and record the result."""
        try:
            before = identity_of(self.settings.in_home(self.recipe.credentials_path))
            self._cli = await self._start()
            async with asyncio.timeout(self.settings.login_limit_s):
                refusal = await self._cli.wait()
            self._finish(refusal, before)
        except TimeoutError:
            self._fail(f"the login took longer than {self.settings.login_limit_s:.0f} s")
        except Exception as error:
            # Only its type: the message may contain secrets.
            self._fail(f"{self.recipe.argv[0]} could not be run ({type(error).__name__})")
        finally:
            if self._opening is not None:
                self._opening.cancel()
            if self._cli is not None:
                await self._cli.end()

    async def _start(self) -> Terminal | Agent:
        for folder in self.recipe.folders:
            self.settings.in_home(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **self.settings.environment(),
            **self.recipe.environment,
            "HOME": str(self.settings.home),
            "TERM": "xterm-256color",
            "BROWSER": str(self.settings.open_url),
            "POLYDEV_URL_FIFO": str(self.settings.url_fifo),
            "PATH": f"{self.settings.commands}:{os.environ.get('PATH', os.defpath)}",
        }
        log.info("login of %s starts", self.recipe.provider)
        what = (self.recipe.argv, environment, self.settings.home)
        if self.recipe.kind is LoginKind.ACP:
            return await Agent.start(*what, self.recipe.method, self._output_came)
        return await Terminal.start(*what, self._output_came)

    def _finish(self, refusal: str, before: FileIdentity | None) -> None:
        if refusal:
            self._fail(f"{self.recipe.argv[0]} did not log in: {refusal}")
            return
        path = self.settings.in_home(self.recipe.credentials_path)
        try:
            self.credentials = read_credentials(path, self.recipe, before)
        except CredentialsIncomplete as incomplete:
            self._fail(str(incomplete))
            return
        self.step = Step.READY
        log.info("login of %s is complete", self.recipe.provider)
        self._notify()

    def _fail(self, reason: str) -> None:
        self.step, self.reason = Step.FAILED, reason
        log.warning("login of %s failed: %s", self.recipe.provider, reason)
        self._notify()

    # -- login URL -------------------------------------------------------------------------------

    def url_arrived(self, text: str) -> None:
        """Handle a URL that the CLI wants to open."""
        self._urls_seen += 1
        if self.has_ended or self._urls_seen > URLS_PER_LOGIN:
            return
        try:
            self.url = urls.authorization_url(text, self.recipe.url_hosts)
        except urls.UrlRefused as refused:
            log.warning("not opened: %s", refused)
            self.browser_error = str(refused)
            self._notify()
            return
        self.step = Step.WAITING_FOR_USER
        self._look_for_own_browser_url()
        if self._opening is not None:
            self._opening.cancel()
        self._opening = asyncio.create_task(self._open(self.url.text))
        self._notify()

    async def _open(self, url: str) -> None:
        port, limit_s = self.settings.debugging_port, self.settings.browser_limit_s
        try:
            await open_page(port, url, limit_s)
        except BrowserUnavailable as unavailable:
            log.warning("%s", unavailable)
            self.browser_error = str(unavailable)
        else:
            self.opened, self.browser_error = True, ""
        self._notify()

    def _output_came(self) -> None:
        self._look_for_own_browser_url()
        self._notify()

    def _look_for_own_browser_url(self) -> None:
        if self.url is not None and self._cli is not None:
            found = urls.own_browser_url(self._cli.output, self.recipe, self.url)
            self.own_browser_url = found or self.own_browser_url

    # -- pasting ---------------------------------------------------------------------------------

    async def paste_code(self, text: str) -> None:
        """Type a code into the CLI's terminal once the CLI asks for it."""
        if self.recipe.paste_accepts != "code":
            raise PasteRefused("this CLI takes the callback URL, not a code")
        try:
            code = urls.code_to_type(text, self.recipe, self.own_browser_url)
        except urls.UrlRefused as refused:
            raise PasteRefused(str(refused)) from None
        wanted = self.recipe.paste_ready_text.encode()
        await self.wait_for(
            lambda: self.has_ended or wanted in self._output(), self.recipe.paste_ready_within_s
        )
        if self.has_ended or self._cli is None or wanted not in self._output():
            raise NotWaiting("the CLI is not asking for a code")
        self._typed.append(code)
        try:
            self._cli.type(code + "\r")
        except OSError:
            raise NotWaiting("the CLI does not take the code") from None
        log.info("a pasted code was typed")

    async def paste_callback(self, text: str) -> None:
        """Send a callback URL from the user's browser to the CLI's callback server."""
        if self.url is None or self.has_ended:
            raise NotWaiting("the CLI is not waiting for a callback")
        try:
            url = urls.callback_url(text, self.recipe, self.url)
        except urls.UrlRefused as refused:
            raise PasteRefused(str(refused)) from None
        try:
            status = await _visit(URL(url, encoded=True))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            why = type(error).__name__
            raise NotWaiting(f"the CLI's callback server did not answer ({why})") from None
        log.info("a pasted callback was delivered: HTTP %d", status)
        if status >= 400:
            raise PasteRefused(f"the CLI refused the callback with HTTP {status}")

    # -- waiting and reporting -------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        return self.step in {Step.READY, Step.FAILED}

    async def wait_for(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `holds()` is true, checked after every change. Returns its last value."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(timeout_s, 0)):
                while not holds():
                    await self._changed.wait()
        return holds()

    def reported_output(self) -> str:
        """End of the CLI's output, without control characters, URL queries, codes and tokens."""
        output = self._output()
        for code in self._typed:
            for part in (code, *code.split("#")):
                output = output.replace(part.encode(), b"[hidden]")
        return reportable(output, REPORTED_OUTPUT_BYTES)

    def _output(self) -> bytes:
        return b"" if self._cli is None else self._cli.output

    def _notify(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()


async def _visit(url: URL) -> int:
    """GET a callback URL, following redirects only within the same server."""
    origin = (url.host, url.port)
    timeout = aiohttp.ClientTimeout(total=CALLBACK_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        for _ in range(CALLBACK_REDIRECTS):
            async with session.get(url, allow_redirects=False) as answer:
                status = answer.status
                location = answer.headers.get("Location", "")
            if not 300 <= status < 400 or not location:
                return status
            url = url.join(URL(location))
            if url.scheme != "http" or (url.host, url.port) != origin:
                return status
    return status
