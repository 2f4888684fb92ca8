"""Take screenshots of every page of a running demo for docs/screenshots.

Run by `scripts/screenshots`. Sends one chat message, and starts a login that it cancels.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from browser import PHONE, Chromium, Visit, running_chromium
from playwright.async_api import Page, expect

from e2e.by_hand import Hand

PROMPT = "plan\nthink: which folder is meant\nmarkdown\nwrite /root/notes.md: saved"
LOGIN_MS = 400_000
TURN_MS = 240_000
_API = """async ([method, path, body]) => {
  const { api } = await import(document.querySelector('script[src*="/app.js"]').src);
  return await api(method, path, body);
}"""


async def main(folder: Path, url: str, email: str, password: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with running_chromium() as chromium:
        async with chromium.visit(url) as visit:
            for name in ("sign-in", "sign-up"):
                await visit.open(f"/{name}")
                await _take_screenshot(visit, folder, name)
            await visit.sign_in(email, password)
            paths = await _prepare(visit)
            for name, path in paths.items():
                await visit.open(path)
                await _wait_until_loaded(visit.page, name)
                await _take_screenshot(visit, folder, name)
        await _take_phone_screenshots(chromium, folder, url, (email, password), paths)


async def _prepare(visit: Visit) -> dict[str, str]:
    """Create a chat that awaits permission and a login that awaits its user."""
    await visit.open("/")
    page = visit.page
    cli = await page.evaluate(_API, ["GET", "/api/vm/active-cli"])
    chat = await page.evaluate(_API, ["POST", "/api/chats", {"provider": "claude_code"}])
    asked = ["POST", f"/api/chats/{chat['chatId']}/turns", {"text": PROMPT}]
    await page.evaluate(_API, asked)
    await page.goto(f"/chat/{chat['chatId']}")
    await expect(page.locator(".permission[data-state=open]")).to_be_visible(timeout=TURN_MS)
    begun = await page.evaluate(_API, ["POST", "/api/auth/start", {"provider": "codex"}])
    return {
        "home": "/",
        "connect": f"/connect/{begun['sessionId']}",
        "chats": "/chat",
        "chat": f"/chat/{chat['chatId']}",
        "machine": "/machine",
        "terminal": f"/terminal/{cli['vmId']}",
        "files": f"/files/{cli['vmId']}",
        "settings": "/settings",
        "administration": "/administration",
    }


async def _wait_until_loaded(page: Page, name: str) -> None:
    """Wait for the content that loads after the page."""
    if name == "connect":
        await expect(page.locator("[data-waiting=yes]")).to_be_attached(timeout=LOGIN_MS)
        await Hand(page, Path("/nowhere")).button(lambda it: it.top > it.height // 4)
    elif name == "terminal":
        await expect(page.locator("[data-state]").first).to_have_text("Connected", timeout=60_000)
        await page.keyboard.type("ls -la /root; free -m\n")
    await page.wait_for_timeout(3000)


async def _take_screenshot(visit: Visit, folder: Path, name: str, where: str = "") -> None:
    for scheme in ("light", "dark"):
        await visit.page.emulate_media(color_scheme=scheme)
        await visit.page.screenshot(
            path=folder / f"{name}{where}-{scheme}.png", animations="disabled"
        )


async def _take_phone_screenshots(
    chromium: Chromium, folder: Path, url: str, account: tuple[str, str], paths: dict[str, Any]
) -> None:
    async with chromium.visit(url, size=PHONE) as visit:
        await visit.sign_in(*account)
        for name in ("home", "connect", "chat"):
            await visit.open(paths[name])
            await _wait_until_loaded(visit.page, name)
            await _take_screenshot(visit, folder, name, "-phone")
        session = paths["connect"].rpartition("/")[2]
        await visit.page.evaluate(_API, ["POST", f"/api/auth/session/{session}/cancel", {}])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:5]))
