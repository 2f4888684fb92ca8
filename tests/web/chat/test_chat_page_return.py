"""Return to a chat: nothing is missed, and the position stays."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from browser import Visit
from chat_page import (
    LIMIT_S,
    LOADED,
    RUNNING,
    answers,
    call_api,
    connect,
    create_chat,
    open_chat,
    send_message,
    wait_until_idle,
)
from controller_world import World
from playwright.async_api import expect

from polydev.controller.store.queries.chats import chat_events
from polydev.controller.store.tables import chats
from polydev.shared.domain import TURN_IDS, ChatEvent, ChatId, EventKind, UserId, now

_StoredTurn = tuple[str, list[tuple[EventKind, dict[str, Any]]], str]


async def test_reload_during_a_turn_misses_nothing(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "slowly: 80")
    for piece in (3, 9, 15):
        await expect(answers(page).last).to_contain_text(f"piece {piece} of 80")
        await page.reload()
        await page.wait_for_selector(LOADED if piece > 3 else RUNNING)
    await wait_until_idle(page)
    text = await answers(page).last.inner_text()
    assert re.findall(r"piece (\d+) of 80", text) == [str(it) for it in range(1, 81)]


async def test_lost_connection_is_shown_and_restored(
    world_and_visit: tuple[World, Visit],
) -> None:
    world, visit = world_and_visit
    await connect(visit, "codex")
    await create_chat(visit)
    page = visit.page
    await send_message(page, "Hello")
    await wait_until_idle(page)
    async with visit.server_outage():
        await world.controller.kill()
        await expect(page.locator("[data-offline]")).to_be_visible()
        await page.locator("textarea").fill("Are you back?")
        await page.locator("textarea").press("Enter")
        await expect(page.locator("[data-composer-error]")).to_contain_text("is not responding")
        await expect(page.locator("textarea")).to_have_value("Are you back?")
        await world.controller.start()
        await expect(page.locator("[data-offline]")).to_be_hidden(timeout=LIMIT_S * 1000)
    await page.locator("textarea").press("Enter")
    await wait_until_idle(page, turns=2)
    await expect(page.locator(".user-message")).to_have_count(2)


async def test_draft_survives_a_reload(visit: Visit) -> None:
    chat_id = await create_chat(visit)
    page = visit.page
    await page.locator("textarea").fill("not yet sent")
    await page.reload()
    await page.wait_for_selector(".chat[data-state=loaded]")
    await expect(page.locator("textarea")).to_have_value("not yet sent")
    other = await call_api(visit, "POST", "/api/chats", {"provider": "codex"})
    await open_chat(page, other["chatId"])
    await expect(page.locator("textarea")).to_have_value("")
    await open_chat(page, chat_id)
    await expect(page.locator("textarea")).to_have_value("not yet sent")


async def test_scrolled_up_transcript_stays_in_place(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    frame = page.locator("[data-transcript]")
    await send_message(page, "slowly: 80")
    await expect(answers(page).last).to_contain_text("piece 25 of 80")
    at_end = "it => it.scrollHeight - it.clientHeight - it.scrollTop < 60"
    assert await frame.evaluate(at_end)
    await frame.hover()
    await page.mouse.wheel(0, -2000)
    await page.wait_for_function(
        "() => document.querySelector('[data-transcript]').scrollTop === 0"
    )
    pieces = re.findall(r"piece (\d+) of 80", await answers(page).last.inner_text())
    await expect(answers(page).last).to_contain_text(f"piece {int(pieces[-1]) + 2} of 80")
    await expect(page.locator("[data-to-end]")).to_be_visible()
    assert await frame.evaluate("it => it.scrollTop") == 0
    await page.locator("[data-to-end]").click()
    await expect(page.locator("[data-to-end]")).to_be_hidden()
    await expect(answers(page).last).to_contain_text("piece 80 of 80", timeout=LIMIT_S * 1000)
    assert await frame.evaluate(at_end)


async def _store_chat(world: World, visit: Visit, turns: Sequence[_StoredTurn]) -> str:
    """Store a chat with these turns: prompt, events and end of each."""
    chat = await call_api(visit, "POST", "/api/chats", {"provider": "codex"})
    account = await call_api(visit, "GET", "/api/account")
    chat_id, user_id = ChatId(chat["chatId"]), UserId(account["id"])
    events = []
    for turn, (asked, came, reason) in enumerate(turns, 1):
        ended = {"reason": reason, "error": None}
        kinds = [(EventKind.USER, {"text": asked}), *came, (EventKind.TURN_ENDED, ended)]
        first = turn * TURN_IDS + 1
        events += [
            ChatEvent(first + at, kind, data, now()) for at, (kind, data) in enumerate(kinds)
        ]
    async with world.database() as database, database.write() as connection:
        await chat_events.insert(connection, chat_id, user_id, events)
        mine = chats.c.chat_id == chat_id
        await connection.execute(sa.update(chats).where(mine).values(turn=len(turns)))
    return chat_id


async def test_interrupted_turn_can_be_continued(world_and_visit: tuple[World, Visit]) -> None:
    world, visit = world_and_visit
    await connect(visit, "codex")
    half = (EventKind.TEXT, {"text": "Half an ans"})
    chat_id = await _store_chat(world, visit, [("Go", [half], "interrupted")])
    await open_chat(visit.page, chat_id)
    await expect(visit.page.locator(".turn-end")).to_contain_text("interrupted")
    await visit.page.get_by_role("button", name="Continue").click()
    await wait_until_idle(visit.page, turns=2)
    await expect(visit.page.get_by_role("button", name="Continue")).to_have_count(0)


async def test_earlier_turns_load_on_request(world_and_visit: tuple[World, Visit]) -> None:
    world, visit = world_and_visit
    turns: list[_StoredTurn] = [
        (f"question {it}", [(EventKind.TEXT, {"text": f"answer {it}\n\n" * 5})], "end_turn")
        for it in range(1, 31)
    ]
    await open_chat(visit.page, await _store_chat(world, visit, turns))
    asked, frame = visit.page.locator(".user-message"), visit.page.locator("[data-transcript]")
    await expect(asked).to_have_count(12)
    await expect(asked.first).to_have_text("question 19")
    await frame.evaluate("it => it.scrollTo(0, 0)")
    before = await asked.first.bounding_box()
    await visit.page.get_by_role("button", name="Show earlier messages").click()
    await expect(asked).to_have_count(24)
    after = await asked.nth(12).bounding_box()
    assert before
    assert after
    assert abs(before["y"] - after["y"]) < 4  # the viewed message stays in place
    await visit.page.get_by_role("button", name="Show earlier messages").click()
    await expect(asked).to_have_text([f"question {it}" for it in range(1, 31)])
    await expect(visit.page.locator("[data-earlier]")).to_be_hidden()


async def test_turn_of_thousands_of_events_opens_quickly(
    world_and_visit: tuple[World, Visit],
) -> None:
    world, visit = world_and_visit
    came: list[tuple[EventKind, dict[str, Any]]] = []
    for it in range(1000):
        tool = {"toolCallId": f"t{it}", "title": f"Edit {it}", "toolKind": "edit"}
        diff = {"type": "diff", "path": f"/root/{it}", "oldText": "a\n" * 50, "newText": "b\n" * 50}
        came.append((EventKind.TOOL, {**tool, "status": "in_progress"}))
        came.append((EventKind.TOOL, {"toolCallId": f"t{it}", "content": [diff]}))
        came.append((EventKind.TOOL, {"toolCallId": f"t{it}", "status": "completed"}))
        came.append((EventKind.TEXT, {"text": f"Number **{it}** is done.\n\n- `{it}`\n"}))
    chat_id = await _store_chat(world, visit, [("Edit all", came, "end_turn")])
    async with asyncio.timeout(LIMIT_S):
        await open_chat(visit.page, chat_id)
    await expect(visit.page.locator(".tool")).to_have_count(1000)
    await expect(visit.page.locator(".answer").last).to_contain_text("Number 999 is done")
    drawn_ms = await visit.page.evaluate(
        """async () => {
          const took = [];
          for (let tries = 0; tries < 3; tries += 1) {
            const started = performance.now();
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            took.push(performance.now() - started);
          }
          return took;
        }"""
    )
    assert min(drawn_ms) < 2_000  # nothing is still being drawn
