"""Helpers for tests of the chat page.

Machines are simulated; `polydev.testing.prompt_script` defines what prompts make agents do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from browser import Chromium, Visit
from controller_world import World, open_world
from playwright.async_api import Locator, Page, expect

LIMIT_S = 60
IDLE = ".chat[data-state=loaded][data-running=false]"
LOADED = ".chat[data-state=loaded]"
RUNNING = ".chat[data-running=true]"


@asynccontextmanager
async def open_world_and_visit(
    chromium: Chromium, **options: Any
) -> AsyncIterator[tuple[World, Visit]]:
    async with open_world({}) as world:
        await world.controller.start()
        async with chromium.visit(f"http://localhost:{world.controller.port}", **options) as visit:
            await visit.sign_up(world.controller, "ann")
            yield world, visit


async def call_api(visit: Visit, method: str, path: str, body: Any = None) -> Any:
    """Call the API as the page does."""
    if visit.page.url == "about:blank":
        await visit.open("/chat")
    csrf = await visit.page.locator("meta[name=csrf-token]").get_attribute("content")
    headers = {"X-CSRF-Token": csrf or ""}
    answer = await visit.context.request.fetch(path, method=method, data=body, headers=headers)
    assert answer.ok, f"{method} {path}: {answer.status} {await answer.text()}"
    return None if answer.status == 204 else await answer.json()


async def connect(visit: Visit, *providers: str) -> None:
    for provider in providers:
        started = await call_api(visit, "POST", "/api/auth/start", {"provider": provider})
        path = f"/api/auth/session/{started['sessionId']}"
        async with asyncio.timeout(LIMIT_S):
            session = await call_api(visit, "GET", path)
            while session["status"] != "completed":
                assert session["status"] not in ("failed", "expired", "cancelled"), session
                wait = f"{path}?after={session['version']}&wait=20"
                session = await call_api(visit, "GET", wait)


async def create_chat(visit: Visit, provider: str = "codex") -> str:
    """Create and open a chat; its id."""
    chat = await call_api(visit, "POST", "/api/chats", {"provider": provider})
    await open_chat(visit.page, chat["chatId"])
    return str(chat["chatId"])


async def open_chat(page: Page, chat_id: str) -> None:
    await page.goto(f"/chat/{chat_id}")
    await page.wait_for_selector(LOADED)


async def send_message(page: Page, text: str) -> None:
    """Type a message and send it."""
    area = page.locator("textarea")
    await area.fill(text)
    await area.press("Enter")
    await expect(area).to_have_value("")


async def wait_until_idle(page: Page, turns: int = 1) -> None:
    await expect(page.locator(".turn")).to_have_count(turns, timeout=LIMIT_S * 1000)
    await page.wait_for_selector(IDLE, timeout=LIMIT_S * 1000)


def answers(page: Page) -> Locator:
    return page.locator(".answer .markdown")


async def allow(page: Page, number: int) -> None:
    """Press an option's key once the permission card accepts it."""
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_be_focused(timeout=LIMIT_S * 1000)
    await page.wait_for_timeout(800)  # keys typed immediately are not meant for the card
    await page.keyboard.press(str(number))
    await expect(card).to_have_count(0)
