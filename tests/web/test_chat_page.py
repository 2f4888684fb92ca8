"""The chat page over simulated machines: a person talks to CLIs, and whatever they say is tame."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from browser import PHONE, Chromium, Visit
from controller_world import World, a_world
from playwright.async_api import Locator, Page, expect

from polydev.domain import TURN_IDS, ChatEvent, ChatId, EventKind, PersonId, now
from polydev.store import chat_events
from polydev.store.tables import chats

LIMIT_S = 60
NAMES = {"claude_code": "Claude Code", "codex": "Codex", "gemini_cli": "Gemini CLI"}
IDLE = ".chat[data-state=loaded][data-running=false]"
_Told = tuple[str, list[tuple[EventKind, dict[str, Any]]], str]
RUNNING = ".chat[data-running=true]"

expect.set_options(timeout=LIMIT_S * 1000)


@asynccontextmanager
async def _visited(chromium: Chromium, **options: Any) -> AsyncIterator[tuple[World, Visit]]:
    async with a_world({}) as world:
        await world.controller.start()
        async with chromium.visit(f"http://localhost:{world.controller.port}", **options) as visit:
            await visit.sign_up(world.controller, "ann")
            yield world, visit


@pytest.fixture
async def place(chromium: Chromium) -> AsyncIterator[tuple[World, Visit]]:
    async with _visited(chromium) as it:
        yield it


@pytest.fixture
async def visit(place: tuple[World, Visit]) -> Visit:
    """Somebody who is signed in, and has connected Codex."""
    await _connect(place[1], "codex")
    return place[1]


async def _asked(visit: Visit, method: str, path: str, body: Any = None) -> Any:
    """Ask the API as the page does."""
    if visit.page.url == "about:blank":
        await visit.open("/chat")
    csrf = await visit.page.locator("meta[name=csrf-token]").get_attribute("content")
    headers = {"X-CSRF-Token": csrf or ""}
    answer = await visit.context.request.fetch(path, method=method, data=body, headers=headers)
    assert answer.ok, f"{method} {path}: {answer.status} {await answer.text()}"
    return None if answer.status == 204 else await answer.json()


async def _connect(visit: Visit, *providers: str) -> None:
    for provider in providers:
        started = await _asked(visit, "POST", "/api/auth/start", {"provider": provider})
        path = f"/api/auth/session/{started['sessionId']}"
        async with asyncio.timeout(LIMIT_S):
            session = await _asked(visit, "GET", path)
            while session["status"] != "completed":
                assert session["status"] not in ("failed", "expired", "cancelled"), session
                wait = f"{path}?after={session['version']}&wait=20"
                session = await _asked(visit, "GET", wait)


async def _chat(visit: Visit, provider: str = "codex") -> str:
    """A new chat, open; its id."""
    chat = await _asked(visit, "POST", "/api/chats", {"provider": provider})
    await _open(visit.page, chat["chatId"])
    return str(chat["chatId"])


async def _open(page: Page, chat_id: str) -> None:
    await page.goto(f"/chat/{chat_id}")
    await page.wait_for_selector(".chat[data-state=loaded]")


async def _say(page: Page, text: str) -> None:
    """Type a message and send it."""
    area = page.locator("textarea")
    await area.fill(text)
    await area.press("Enter")
    await expect(area).to_have_value("")


async def _until_idle(page: Page, turns: int = 1) -> None:
    await expect(page.locator(".turn")).to_have_count(turns, timeout=LIMIT_S * 1000)
    await page.wait_for_selector(IDLE, timeout=LIMIT_S * 1000)


def _answers(page: Page) -> Locator:
    return page.locator(".answer .markdown")


# -- turns ---------------------------------------------------------------------------------------


async def test_a_person_asks_and_the_answer_comes(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await expect(page.locator("[data-empty]")).to_be_visible()
    await _say(page, "Is there\nanybody?")
    await _until_idle(page)
    await expect(page.locator(".asked")).to_have_text("Is there\nanybody?")
    await expect(_answers(page).last).to_contain_text("Is there anybody?")
    await expect(page.locator("[data-empty]")).to_be_hidden()
    await expect(page.locator("[data-spoken]")).to_contain_text("anybody?")
    await expect(page.locator("[data-spoken]")).to_contain_text("Codex has finished")
    await visit.assert_accessible()


async def test_enter_sends_and_with_shift_starts_a_line(visit: Visit) -> None:
    await _chat(visit)
    area = visit.page.locator("textarea")
    await area.press_sequentially("one")
    before = await area.bounding_box()
    await area.press("Shift+Enter")
    await area.press("Shift+Enter")
    await area.press_sequentially("two")
    after = await area.bounding_box()
    assert before
    assert after
    assert after["height"] > before["height"]
    await area.press("Enter")
    await expect(visit.page.locator(".asked")).to_have_text("one\n\ntwo")


async def test_thoughts_tools_and_plans_are_folded_and_say_how_they_ended(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "think: I had better look\nplan\nrun: echo here I am")
    await _allow(page, 1)
    await _until_idle(page)
    await expect(page.locator(".plan-title")).to_contain_text("3 of 3 steps done")
    thought = page.locator(".thought")
    await expect(thought.locator(".folded")).to_be_hidden()
    await thought.locator("summary").click()
    await expect(thought.locator(".folded")).to_have_text("I had better look")
    tool = page.locator(".tool").last
    await expect(tool).to_have_attribute("data-state", "completed")
    await expect(tool).to_contain_text("echo here I am")
    await tool.locator("summary").click()
    await expect(tool.locator(".output").first).to_contain_text("here I am")
    await visit.assert_accessible()


async def test_a_turn_that_fails_says_why_and_can_be_tried_again(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "fail: the model is tired")
    await _until_idle(page)
    problem = page.locator(".turn-problem")
    await expect(problem).to_be_visible()
    await visit.assert_accessible()
    await problem.get_by_role("button", name="Try again").click()
    await _until_idle(page, turns=2)
    await expect(page.locator(".asked")).to_have_count(2)
    await expect(page.get_by_role("button", name="Try again")).to_have_count(1)


async def test_a_turn_can_be_stopped(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "slowly: 400")
    await expect(_answers(page).last).to_contain_text("piece 3 of 400")
    await expect(page.locator("[data-send]")).to_be_hidden()
    await expect(page.locator("[data-composer-told]")).to_contain_text("Codex is working")
    await page.get_by_role("button", name="Stop Codex").click()
    await _until_idle(page)
    await expect(page.locator(".turn-end")).to_contain_text("Stopped")
    await _say(page, "and now?")
    await _until_idle(page, turns=2)


async def test_a_machine_that_does_not_run_is_started_from_here(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    vm_id = await page.locator("[data-machine]").get_attribute("data-machine")
    await _asked(visit, "POST", f"/api/vm/{vm_id}/stop")
    await expect(page.locator(".where-machine")).to_contain_text("Stopped")
    await page.locator("textarea").fill("Are you there?")
    await page.locator("textarea").press("Enter")
    await expect(page.locator("[data-trouble]")).to_contain_text("Your CLI machine is stopped")
    await expect(page.locator("textarea")).to_have_value("Are you there?")
    await visit.assert_accessible()
    await page.get_by_role("button", name="Start the machine").click()
    await expect(page.locator(".where-machine")).to_contain_text("Running")
    await expect(page.locator("[data-trouble]")).to_be_empty()
    await page.locator("textarea").press("Enter")
    await _until_idle(page)
    await expect(_answers(page).last).to_contain_text("Are you there?")


# -- permissions ---------------------------------------------------------------------------------


async def _allow(page: Page, number: int) -> None:
    """Choose with a key, as soon as the card takes it."""
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_be_focused(timeout=LIMIT_S * 1000)
    await page.wait_for_timeout(800)  # what is typed at once is not meant for the card
    await page.keyboard.press(str(number))
    await expect(card).to_have_count(0)


async def test_a_permission_is_allowed_with_a_key(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "write notes.txt: remember the milk")
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_contain_text("Codex asks for permission")
    await expect(card).to_contain_text("notes.txt")
    await expect(card.locator(".diff .added")).to_contain_text("remember the milk")
    await expect(page.locator("[data-spoken]")).to_contain_text("asks for permission")
    await visit.assert_accessible()
    await _allow(page, 1)
    await _until_idle(page)
    answered = page.locator(".permission")
    await expect(answered).to_have_attribute("data-answer", "allowed")
    await expect(answered).to_contain_text("You chose: Allow")
    await expect(page.locator(".tool").last).to_have_attribute("data-state", "completed")
    await expect(page.locator("textarea")).to_be_focused()


async def test_a_permission_is_refused_with_a_click(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "run: rm -r everything")
    await page.get_by_role("button", name="Reject").click()
    await _until_idle(page)
    await expect(page.locator(".permission")).to_have_attribute("data-answer", "refused")
    await expect(_answers(page).last).to_contain_text("You did not allow it")


async def test_a_key_that_was_meant_for_something_else_decides_nothing(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "run: echo 1")
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_be_focused()
    for key in ("Enter", "Space", "1"):
        await page.keyboard.press(key)
    await page.wait_for_timeout(300)
    await expect(card).to_be_visible()
    await expect(card.locator("button").first).to_be_enabled()


async def test_who_writes_keeps_the_focus_and_is_led_to_the_card(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "slowly: 8\nrun: echo 1")
    await page.locator("textarea").fill("my next thought")
    await page.wait_for_selector(".permission[data-state=open]")
    await expect(page.locator("textarea")).to_be_focused()
    await expect(page.locator("textarea")).to_have_value("my next thought")
    await page.locator("textarea").press("Enter")
    await expect(page.locator(".turn")).to_have_count(1)
    await expect(page.locator("[data-composer-told]")).to_contain_text("waits for your permission")


async def test_two_tabs_show_the_same_and_one_answers_for_both(visit: Visit) -> None:
    chat_id = await _chat(visit)
    first, second = visit.page, await visit.another_page()
    await _open(second, chat_id)
    await _say(first, "run: echo both")
    await expect(second.locator(".permission[data-state=open]")).to_be_visible()
    await second.get_by_role("button", name="Allow", exact=False).first.click()
    for page in (first, second):
        await _until_idle(page)
        await expect(page.locator(".permission")).to_contain_text("You chose: Allow")
    told = [await page.locator("[data-log]").inner_text() for page in (first, second)]
    assert told[0] == told[1]


# -- coming back ---------------------------------------------------------------------------------


async def test_a_reload_in_the_middle_of_a_turn_misses_nothing(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "slowly: 24")
    for piece in (3, 9, 15):
        await expect(_answers(page).last).to_contain_text(f"piece {piece} of 24")
        await page.reload()
        await page.wait_for_selector(RUNNING)
    await _until_idle(page)
    text = await _answers(page).last.inner_text()
    assert re.findall(r"piece (\d+) of 24", text) == [str(it) for it in range(1, 25)]


async def test_a_connection_that_goes_away_is_told_and_comes_back(
    place: tuple[World, Visit],
) -> None:
    world, visit = place
    await _connect(visit, "codex")
    await _chat(visit)
    page = visit.page
    await _say(page, "Hello")
    await _until_idle(page)
    await world.controller.kill()
    await expect(page.locator("[data-away]")).to_be_visible()
    await page.locator("textarea").fill("Are you back?")
    await page.locator("textarea").press("Enter")
    await expect(page.locator("[data-trouble]")).to_contain_text("does not answer")
    await expect(page.locator("textarea")).to_have_value("Are you back?")
    visit.faults.clear()  # the console tells of each connection that failed
    await world.controller.start()
    await expect(page.locator("[data-away]")).to_be_hidden(timeout=LIMIT_S * 1000)
    visit.faults.clear()
    await page.locator("textarea").press("Enter")
    await _until_idle(page, turns=2)
    await expect(page.locator(".asked")).to_have_count(2)


async def test_a_draft_is_there_again(visit: Visit) -> None:
    chat_id = await _chat(visit)
    page = visit.page
    await page.locator("textarea").fill("not yet sent")
    await page.reload()
    await page.wait_for_selector(".chat[data-state=loaded]")
    await expect(page.locator("textarea")).to_have_value("not yet sent")
    other = await _asked(visit, "POST", "/api/chats", {"provider": "codex"})
    await _open(page, other["chatId"])
    await expect(page.locator("textarea")).to_have_value("")
    await _open(page, chat_id)
    await expect(page.locator("textarea")).to_have_value("not yet sent")


async def test_who_reads_further_up_is_left_there(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    frame = page.locator("[data-transcript]")
    await _say(page, "slowly: 60")
    await expect(_answers(page).last).to_contain_text("piece 25 of 60")
    at_end = "it => it.scrollHeight - it.clientHeight - it.scrollTop < 60"
    assert await frame.evaluate(at_end)
    await frame.hover()
    await page.mouse.wheel(0, -2000)
    await expect(page.locator("[data-to-end]")).to_be_visible()
    assert await frame.evaluate("it => it.scrollTop") == 0
    await page.locator("[data-to-end]").click()
    await expect(page.locator("[data-to-end]")).to_be_hidden()
    await expect(_answers(page).last).to_contain_text("piece 60 of 60", timeout=LIMIT_S * 1000)
    assert await frame.evaluate(at_end)


async def _told(world: World, visit: Visit, turns: Sequence[_Told]) -> str:
    """A chat in which these turns were: of each, what was asked, and what came of it."""
    chat = await _asked(visit, "POST", "/api/chats", {"provider": "codex"})
    account = await _asked(visit, "GET", "/api/account")
    chat_id, user_id = ChatId(chat["chatId"]), PersonId(account["id"])
    events = []
    for turn, (asked, came, reason) in enumerate(turns, 1):
        ended = {"reason": reason, "error": None}
        kinds = [(EventKind.USER, {"text": asked}), *came, (EventKind.TURN_ENDED, ended)]
        first = turn * TURN_IDS + 1
        events += [
            ChatEvent(first + at, kind, data, now()) for at, (kind, data) in enumerate(kinds)
        ]
    async with world.database() as database, database.write() as connection:
        await chat_events.add(connection, chat_id, user_id, events)
        mine = chats.c.chat_id == chat_id
        await connection.execute(sa.update(chats).where(mine).values(turn=len(turns)))
    return chat_id


async def test_an_interrupted_turn_goes_on_when_it_is_told_to(place: tuple[World, Visit]) -> None:
    world, visit = place
    await _connect(visit, "codex")
    half = (EventKind.TEXT, {"text": "Half an ans"})
    chat_id = await _told(world, visit, [("Go", [half], "interrupted")])
    await _open(visit.page, chat_id)
    await expect(visit.page.locator(".turn-end")).to_contain_text("interrupted")
    await visit.page.get_by_role("button", name="Continue").click()
    await _until_idle(visit.page, turns=2)
    await expect(visit.page.get_by_role("button", name="Continue")).to_have_count(0)


async def test_earlier_turns_come_when_they_are_wanted(place: tuple[World, Visit]) -> None:
    world, visit = place
    turns: list[_Told] = [
        (f"question {it}", [(EventKind.TEXT, {"text": f"answer {it}\n\n" * 5})], "end_turn")
        for it in range(1, 31)
    ]
    await _open(visit.page, await _told(world, visit, turns))
    asked, frame = visit.page.locator(".asked"), visit.page.locator("[data-transcript]")
    await expect(asked).to_have_count(12)
    await expect(asked.first).to_have_text("question 19")
    await frame.evaluate("it => it.scrollTo(0, 0)")
    before = await asked.first.bounding_box()
    await visit.page.get_by_role("button", name="Show earlier messages").click()
    await expect(asked).to_have_count(24)
    after = await asked.nth(12).bounding_box()
    assert before
    assert after
    assert abs(before["y"] - after["y"]) < 4  # what was looked at stays where it was
    await visit.page.get_by_role("button", name="Show earlier messages").click()
    await expect(asked).to_have_text([f"question {it}" for it in range(1, 31)])
    await expect(visit.page.locator("[data-earlier]")).to_be_hidden()


async def test_a_turn_of_thousands_of_events_opens_quickly(place: tuple[World, Visit]) -> None:
    world, visit = place
    came: list[tuple[EventKind, dict[str, Any]]] = []
    for it in range(1000):
        tool = {"toolCallId": f"t{it}", "title": f"Edit {it}", "toolKind": "edit"}
        diff = {"type": "diff", "path": f"/root/{it}", "oldText": "a\n" * 50, "newText": "b\n" * 50}
        came.append((EventKind.TOOL, {**tool, "status": "in_progress"}))
        came.append((EventKind.TOOL, {"toolCallId": f"t{it}", "content": [diff]}))
        came.append((EventKind.TOOL, {"toolCallId": f"t{it}", "status": "completed"}))
        came.append((EventKind.TEXT, {"text": f"Number **{it}** is done.\n\n- `{it}`\n"}))
    chat_id = await _told(world, visit, [("Edit all", came, "end_turn")])
    async with asyncio.timeout(LIMIT_S):
        await _open(visit.page, chat_id)
    await expect(visit.page.locator(".tool")).to_have_count(1000)
    await expect(visit.page.locator(".answer").last).to_contain_text("Number 999 is done")
    drawn = await visit.page.evaluate(
        """async () => {
          const started = performance.now();
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          return performance.now() - started;
        }"""
    )
    assert drawn < 2_000  # nothing is still being drawn


# -- what is hostile -----------------------------------------------------------------------------


async def test_what_a_model_writes_is_never_script(visit: Visit) -> None:
    await _chat(visit)
    page = visit.page
    await _say(page, "markdown")
    await _until_idle(page)
    answer = _answers(page).last
    await expect(answer.locator("h3")).to_have_text("A heading")
    await expect(answer.locator("td").first).to_have_text("a")
    await expect(answer).to_contain_text("<script>document.body.dataset.hostile")
    await expect(answer.locator("script, img, [onerror]")).to_have_count(0)
    await expect(answer.get_by_role("link")).to_have_count(1)
    await answer.get_by_text("Do not press").click()
    assert await page.evaluate("document.body.dataset.hostile") is None
    await visit.assert_accessible()


@pytest.mark.parametrize("hostile", ["<img src=x onerror=alert(1)>", "\u202eevil", "x" * 120])
async def test_a_title_is_text(visit: Visit, hostile: str) -> None:
    chat_id = await _chat(visit)
    await _asked(visit, "PATCH", f"/api/chats/{chat_id}", {"title": hostile})
    await _open(visit.page, chat_id)
    await expect(visit.page.locator(".chat-row .chat-title")).to_have_text(
        hostile.replace("\u202e", "")
    )
    await visit.assert_accessible()


# -- the list ------------------------------------------------------------------------------------


async def test_without_a_connection_the_page_says_what_to_do(place: tuple[World, Visit]) -> None:
    _, visit = place
    await visit.open("/chat")
    await expect(visit.page.get_by_text("Connect a CLI first")).to_be_visible()
    await expect(visit.page.locator("a.cli-card")).to_have_count(len(NAMES))
    await visit.assert_accessible()


async def test_chats_are_started_renamed_filtered_and_deleted(place: tuple[World, Visit]) -> None:
    _, visit = place
    await _connect(visit, "codex", "claude_code")
    page = visit.page
    await visit.open("/chat")
    await page.locator("button.cli-card", has_text="Codex").click()
    await page.wait_for_selector(".chat[data-state=loaded]")
    await _say(page, "What is the first thing?")
    await _until_idle(page)
    await expect(page.locator(".chat-row .chat-title")).to_have_text("What is the first thing?")
    await expect(page.locator("[data-title]")).to_have_text("What is the first thing?")

    await page.locator(".chats-head summary").click()
    await page.get_by_role("button", name="Claude Code").click()
    await expect(page.locator(".chat-row")).to_have_count(2)
    await expect(page.locator(".where-cli")).to_have_text("Claude Code")
    await expect(page.locator(".where-machine")).to_contain_text("Running")

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


async def test_the_list_tells_what_other_chats_do(visit: Visit) -> None:
    asking = await _chat(visit)
    await _say(visit.page, "run: echo 1")
    await visit.page.wait_for_selector(".permission[data-state=open]")
    await _chat(visit)
    row = visit.page.locator(f"#chat-{asking}")
    await expect(row.locator(".badge")).to_have_text("Asks you")
    await _asked(visit, "POST", f"/api/chats/{asking}/stop")
    await expect(row.locator(".badge")).to_have_count(0)
    await expect(row).to_contain_text("just now")


async def test_somebody_elses_chat_is_not_there(visit: Visit, chromium: Chromium) -> None:
    chat_id = await _chat(visit)
    async with chromium.visit(visit.url) as other:
        answer = await other.open(f"/chat/{chat_id}")
        assert answer is not None
        assert "/sign-in" in other.page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_the_list_or_a_chat(chromium: Chromium, scheme: Any) -> None:
    async with _visited(chromium, size=PHONE, scheme=scheme) as (_, visit):
        await _connect(visit, "codex")
        page = visit.page
        chat_id = await _chat(visit)
        area = page.locator("textarea")
        await area.press_sequentially("write a.txt: " + "long " * 60)
        await area.press("Enter")
        await expect(page.locator(".turn")).to_have_count(0)  # a new line, where Enter is that
        await page.get_by_role("button", name="Send").click()
        await page.wait_for_selector(".permission[data-state=open]")
        await visit.assert_accessible()
        await page.locator(".choices button").first.tap()
        await _until_idle(page)
        await visit.assert_accessible()
        await page.get_by_role("link", name="All chats").click()
        await expect(page.locator(f"#chat-{chat_id}")).to_be_visible()
        await visit.assert_accessible()
        await page.locator(f"#chat-{chat_id} a").tap()
        await page.wait_for_selector(IDLE)
        await expect(page.locator(".asked")).to_be_visible()
