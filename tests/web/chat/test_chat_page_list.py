"""List of chats: create, filter, rename and delete them."""

from __future__ import annotations

from typing import Any

import pytest
from browser import PHONE, Chromium, Visit
from chat_page import (
    IDLE,
    call_api,
    connect,
    create_chat,
    open_world_and_visit,
    send_message,
    wait_until_idle,
)
from controller_world import World
from playwright.async_api import expect

NAMES = {"claude_code": "Claude Code", "codex": "Codex", "gemini_cli": "Gemini CLI"}


async def test_page_without_connections_offers_to_connect(
    world_and_visit: tuple[World, Visit],
) -> None:
    _, visit = world_and_visit
    await visit.open("/chat")
    await expect(visit.page.get_by_text("Connect a CLI first")).to_be_visible()
    await expect(visit.page.locator("a.cli-card")).to_have_count(len(NAMES))
    await visit.assert_accessible()


async def test_chats_are_started_renamed_filtered_and_deleted(
    world_and_visit: tuple[World, Visit],
) -> None:
    _, visit = world_and_visit
    await connect(visit, "codex", "claude_code")
    page = visit.page
    await visit.open("/chat")
    await page.locator("button.cli-card", has_text="Codex").click()
    await page.wait_for_selector(".chat[data-state=loaded]")
    await send_message(page, "What is the first thing?")
    await wait_until_idle(page)
    await expect(page.locator(".chat-row .chat-title")).to_have_text("What is the first thing?")
    await expect(page.locator("[data-title]")).to_have_text("What is the first thing?")

    await page.locator(".chats-head summary").click()
    await page.get_by_role("button", name="Claude Code").click()
    await expect(page.locator(".chat-row")).to_have_count(2)
    await expect(page.locator(".location-cli")).to_have_text("Claude Code")
    await expect(page.locator(".location-machine")).to_contain_text("Running")

    await page.locator(".chat-head summary").click()
    await page.locator(".chat-head").get_by_role("button", name="Rename").click()
    await page.get_by_label("Title").fill("The second")
    await page.keyboard.press("Enter")
    await expect(page.locator("[data-title]")).to_have_text("The second")
    await expect(page.locator(".chat-row .chat-title").first).to_have_text("The second")

    await visit.open("/chat?provider=codex")
    await expect(page.locator(".chat-row")).to_have_count(1)
    await expect(page.locator(".chat-row")).to_contain_text("What is the first thing?")
    await visit.assert_accessible()
    await page.locator(".chat-row summary").click()
    await page.locator(".chat-row").get_by_role("button", name="Delete").click()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator(".chat-row")).to_have_count(1)
    await page.locator(".chat-row summary").click()
    await page.locator(".chat-row").get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.locator(".chat-row")).to_have_count(0)
    await expect(page.locator(".chat-list")).to_contain_text("No chats with Codex yet")


async def test_list_shows_the_state_of_other_chats(visit: Visit) -> None:
    asking = await create_chat(visit)
    await send_message(visit.page, "run: echo 1")
    await visit.page.wait_for_selector(".permission[data-state=open]")
    await create_chat(visit)
    row = visit.page.locator(f"#chat-{asking}")
    await expect(row.locator(".badge")).to_have_text("Needs permission")
    await call_api(visit, "POST", f"/api/chats/{asking}/stop")
    await expect(row.locator(".badge")).to_have_count(0)
    await expect(row).to_contain_text("just now")


async def test_chat_of_another_user_is_not_found(visit: Visit, chromium: Chromium) -> None:
    chat_id = await create_chat(visit)
    async with chromium.visit(visit.url) as other:
        answer = await other.open(f"/chat/{chat_id}")
        assert answer is not None
        assert "/sign-in" in other.page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_phone_shows_the_list_or_a_chat(chromium: Chromium, scheme: Any) -> None:
    async with open_world_and_visit(chromium, size=PHONE, scheme=scheme) as (_, visit):
        await connect(visit, "codex")
        page = visit.page
        chat_id = await create_chat(visit)
        area = page.locator("textarea")
        await area.press_sequentially("write a.txt: " + "long " * 60)
        await area.press("Enter")
        await expect(page.locator(".turn")).to_have_count(0)  # a new line, where Enter is that
        await page.get_by_role("button", name="Send").click()
        await page.wait_for_selector(".permission[data-state=open]")
        await visit.assert_accessible()
        await page.locator(".choices button").first.tap()
        await wait_until_idle(page)
        await visit.assert_accessible()
        await page.get_by_role("link", name="All chats").click()
        await expect(page.locator(f"#chat-{chat_id}")).to_be_visible()
        await visit.assert_accessible()
        await page.locator(f"#chat-{chat_id} a").tap()
        await page.wait_for_selector(IDLE)
        await expect(page.locator(".user-message")).to_be_visible()
