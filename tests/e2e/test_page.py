"""Test the page in Chromium with real machines and CLIs.

Gemini CLI logs in through the live view, Codex in a local browser. test_journey.py covers Claude
Code and the commands. Providers and ways to log in are independent, so each is tested once.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, Chromium, Visit
from playwright.async_api import Page, expect

from e2e.by_hand import Hand
from e2e.installation import Installation
from e2e.test_journey import searchable_files, tokens_in

pytestmark = [pytest.mark.vm, pytest.mark.clis, pytest.mark.timeout(1800)]

NAMES = {"claude_code": "Claude Code", "codex": "Codex", "gemini_cli": "Gemini CLI"}
LOGIN_MS = 400_000
TURN_MS = 240_000
"""Generous, as machines may be emulated: two at a time on two processors."""


@pytest.fixture(scope="module")
def world(installation: Installation, report: dict[str, Any]) -> dict[str, Any]:
    """Prepare a host with a standby clone for browser machines.

    The fake providers wait for manual input, as after `polydev demo`.
    """
    os.kill(installation.process("polydev.testing.fake_providers"), signal.SIGUSR1)
    assert installation.json("image", "warm", limit_s=900)["state"] == "ready"
    return report


@asynccontextmanager
async def _signed_in(
    installation: Installation, world: dict[str, Any], chromium: Chromium, **how: Any
) -> AsyncIterator[Visit]:
    """Open the page with the administrator signed in."""
    async with chromium.visit(f"http://localhost:{installation.port}", **how) as visit:
        await visit.open("/")
        await visit.page.get_by_label("Email address").fill(world["account"]["email"])
        await visit.page.get_by_label("Password", exact=True).fill(world["account"]["password"])
        await visit.page.get_by_role("button", name="Sign in").click()
        await expect(visit.page.locator("#provider-codex")).to_be_visible()
        yield visit


async def _chat_with(page: Page, provider: str) -> None:
    """Create a chat and open its page."""
    chat_id = await page.evaluate(
        """async (provider) => {
          const { api } = await import(document.querySelector('script[src*="/app.js"]').src);
          return (await api("POST", "/api/chats", { provider })).chatId;
        }""",
        provider,
    )
    await page.goto(f"/chat/{chat_id}")


async def _send(page: Page, text: str) -> None:
    await expect(page.locator(".chat")).not_to_have_attribute("data-state", "loading")
    await page.get_by_label(re.compile("Message to")).fill(text)
    await page.keyboard.press("Enter")


async def test_manual_login_leads_to_a_chat_that_asks_permission(
    installation: Installation, world: dict[str, Any], chromium: Chromium
) -> None:
    provider = "gemini_cli"
    async with _signed_in(installation, world, chromium) as visit:
        page, calls = visit.page, installation.state_dir / "standin" / "calls.jsonl"
        await page.locator(f"#provider-{provider}").get_by_role("button", name="Connect").click()
        await expect(page).to_have_url(re.compile(r"/connect/"))
        await expect(page.locator("[data-waiting=yes]")).to_be_attached(timeout=LOGIN_MS)
        await Hand(page, calls).log_in()
        await expect(page.locator("#connect-state")).to_have_attribute(
            "data-status", "completed", timeout=LOGIN_MS
        )
        shown = await page.locator(".facts a[href='/machine']").first.inner_text()
        [cli] = installation.json("machine", "list")
        assert (shown, cli["vm_type"]) == (cli["vm_id"], "cli"), "never the browser machine"

        await expect(page).to_have_url(re.compile(r"/chat/"))
        file = f"/root/{provider}.txt"
        await _send(page, f"run: echo it works > {file}")
        permission = page.locator(".permission[data-state=open]")
        await expect(permission).to_be_visible(timeout=TURN_MS)
        await permission.locator("button.primary").first.click()
        await expect(page.locator(".permission[data-state=answered]")).to_be_visible()
        await expect(page.locator("[data-stop]")).to_be_hidden(timeout=TURN_MS)
        content = installation.ok("machine", "exec", cli["vm_id"], "--", "cat", file)
        assert content.strip() == "it works"


def test_gemini_tokens_are_only_in_the_cli_machine(
    installation: Installation, world: dict[str, Any]
) -> None:
    [cli] = installation.json("machine", "list")
    path = "/root/.gemini/oauth_creds.json"
    tokens = tokens_in(
        json.loads(installation.ok("machine", "exec", cli["vm_id"], "--", "cat", path))
    )
    assert len(tokens) == 3
    arguments = "\n".join(installation.processes().values())
    assert not any(token in arguments for token in tokens)
    for file, content in searchable_files(installation.state_dir):
        assert not any(token.encode() in content for token in tokens), file


async def test_local_browser_login_is_completed_by_its_callback_url(
    installation: Installation, world: dict[str, Any], chromium: Chromium
) -> None:
    async with _signed_in(installation, world, chromium, size=PHONE) as visit:
        page = visit.page
        before = [it["vm_id"] for it in installation.json("machine", "list")]
        session = await page.evaluate(
            """async () => {
              const { api } = await import(document.querySelector('script[src*="/app.js"]').src);
              return (await api("POST", "/api/auth/start", { provider: "codex" })).sessionId;
            }"""
        )
        await page.goto(f"/connect/{session}")
        await expect(page.locator("[data-waiting=yes]")).to_be_attached(timeout=LOGIN_MS)
        await page.locator("#own-browser summary").click()
        url = await page.locator("#own-browser-url").inner_text()
        await page.get_by_label("Address from your browser").fill("not this")
        await page.locator("#paste").get_by_role("button", name="Submit").click()
        await expect(page.locator("#paste-problem")).to_be_visible()
        await page.get_by_label("Address from your browser").fill(
            await _log_in_locally(installation, url)
        )
        await page.locator("#paste").get_by_role("button", name="Submit").click()
        await expect(page.locator("#connect-state")).to_have_attribute(
            "data-status", "completed", timeout=LOGIN_MS
        )
        assert [it["vm_id"] for it in installation.json("machine", "list")] == before


async def _log_in_locally(installation: Installation, url: str) -> str:
    """Sign in at a URL with a browser in the fake providers' network."""
    providers = installation.state_dir / "standin"
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", f"{installation.name}-net", sys.executable),
        *(Path(__file__).with_name("own_browser.py"), url),
        *("http://198.51.100.1:3128", providers / "ca.pem"),
        env=installation.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def test_turn_continues_without_the_page_and_is_shown_once(
    installation: Installation, world: dict[str, Any], chromium: Chromium
) -> None:
    async with _signed_in(installation, world, chromium) as visit:
        page = visit.page
        await _chat_with(page, "codex")
        await _send(page, "slowly: 60")
        log = page.locator("[data-log]")
        await expect(log).to_contain_text("piece 3 of 60", timeout=TURN_MS)
        here = page.url
        await page.goto("/machine")
        await page.goto(here)
        await expect(log).to_contain_text("piece 60 of 60", timeout=TURN_MS)
        await expect(page.locator("[data-stop]")).to_be_hidden(timeout=TURN_MS)
        pieces = re.findall(r"piece (\d+) of 60", await log.inner_text())
        assert pieces == [str(number) for number in range(1, 61)], "each once, in order"


async def test_terminal_is_a_shell_in_the_cli_machine(
    installation: Installation, world: dict[str, Any], chromium: Chromium
) -> None:
    [cli] = installation.json("machine", "list")
    async with _signed_in(installation, world, chromium) as visit:
        page = visit.page
        await page.goto(f"/terminal/{cli['vm_id']}")
        await expect(page.locator("[data-state]").first).to_have_text("Connected", timeout=60_000)
        await page.locator(".xterm").click()
        await page.keyboard.type("cat /root/gemini_cli.txt; hostname\n", delay=20)
        await expect(page.locator(".xterm-rows")).to_contain_text("it works", timeout=60_000)
        await page.reload()
        await expect(page.locator(".xterm-rows")).to_contain_text("it works", timeout=60_000)


async def test_second_user_sees_nothing_of_the_first(
    installation: Installation, world: dict[str, Any], chromium: Chromium
) -> None:
    [cli] = installation.json("machine", "list")
    code = installation.json("user", "invite")["code"]
    async with chromium.visit(f"http://localhost:{installation.port}") as visit:
        asked = {"email": "bea@example.org", "password": "seven quiet lanterns", "invitation": code}
        answer = await visit.context.request.post("/api/account/sign-up", data=asked)
        assert answer.status == 201, await answer.text()
        await visit.open("/")
        for provider in NAMES:
            card = visit.page.locator(f"#provider-{provider}")
            await expect(card.get_by_role("button", name="Connect")).to_be_visible()
        for path in (f"/machine/{cli['vm_id']}", f"/terminal/{cli['vm_id']}"):
            found = await visit.open(path)
            assert found is not None
            assert found.status == 404
