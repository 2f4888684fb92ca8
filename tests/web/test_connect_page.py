"""Connect page over simulated machines, to every result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from browser import PHONE, Chromium, Visit
from controller_world import World, open_world
from playwright.async_api import Page, Route, expect
from rfb import wait_for_screen_events

NEVER = {"login_end": "never"}
WAITING = "#connect-state[data-waiting=yes]"
ENDED = "#connect-state[data-phase=ended]"
CALLBACK = "http://localhost:1455/auth/callback?code=x&state=x"
SLOW_MS = 60_000
INNER = {"x": 320, "y": 190}
"""A point of the simulated screen, which has 640 by 400."""


@asynccontextmanager
async def _open_world_and_visit(
    chromium: Chromium, simulation: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[World, Visit]]:
    """World with this simulation, and a signed-in window."""
    async with open_world(simulation) as world:
        await world.controller.start()
        async with chromium.visit(f"http://localhost:{world.controller.port}", **options) as visit:
            await visit.sign_up(world.controller, "ann")
            yield world, visit


@pytest.fixture
async def world_and_visit(chromium: Chromium) -> AsyncIterator[tuple[World, Visit]]:
    async with _open_world_and_visit(chromium, NEVER) as it:
        yield it


async def _connect(visit: Visit, provider: str = "codex") -> str:
    """Start a connect session as the home page does; returns its id."""
    await visit.open("/")
    body = json.dumps({"provider": provider})
    # Whatever home looks like, this is what its button sends.
    session_id: str = await visit.page.evaluate(
        """async (body) => {
          const csrf = document.querySelector('meta[name="csrf-token"]').content;
          const headers = {"Content-Type": "application/json", "X-CSRF-Token": csrf};
          const answer = await fetch("/api/auth/start", {method: "POST", body, headers});
          return (await answer.json()).sessionId;
        }""",
        body,
    )
    await visit.open(f"/connect/{session_id}")
    return session_id


async def _ask(page: Page, path: str) -> Any:
    return await page.evaluate("async (path) => (await fetch(path)).json()", path)


async def _until_live(page: Page) -> None:
    await page.wait_for_selector(WAITING, timeout=SLOW_MS)
    await expect(page.locator("#screen-state")).to_have_text("Live", timeout=SLOW_MS)


async def _click_inside(page: Page) -> None:
    """Click at INNER of the machine's screen, wherever that is on the page."""
    canvas = page.locator("#screen-view canvas")
    box = await canvas.bounding_box()
    assert box is not None
    scale = box["width"] / 640
    await canvas.click(position={"x": INNER["x"] * scale, "y": INNER["y"] * scale})


@asynccontextmanager
async def _hold_redirect(page: Page) -> AsyncIterator[None]:
    """Hold the redirect to the chat that follows a completed login."""
    looked_at = asyncio.Event()

    async def wait(route: Route) -> None:
        await looked_at.wait()
        await route.continue_()

    await page.route("**/api/chats", wait)
    yield
    looked_at.set()
    await page.wait_for_url("**/chat/*")


async def test_login_in_the_live_view_leads_to_the_chat(
    world_and_visit: tuple[World, Visit],
) -> None:
    world, visit = world_and_visit
    session_id = await _connect(visit)
    page = visit.page
    await _until_live(page)
    await visit.assert_accessible()
    await _click_inside(page)
    await page.keyboard.type("aB@")
    events = await wait_for_screen_events(world.controller.host(), session_id, 4)
    (click,) = [it["click"] for it in events if "click" in it]
    assert abs(click[0] - INNER["x"]) <= 2
    assert abs(click[1] - INNER["y"]) <= 2
    keys = [it["key"] for it in events if "key" in it]
    assert [it for it in keys if it < 0xFF00] == [ord("a"), ord("B"), ord("@")]
    async with _hold_redirect(page):
        await page.keyboard.press("Enter")
        await page.wait_for_selector(ENDED, timeout=SLOW_MS)
        await expect(page.locator("h1")).to_have_text("Codex is connected")
        await visit.assert_accessible()
        view = await _ask(page, f"/api/auth/session/{session_id}")
        active = await _ask(page, "/api/vm/active-cli")
        assert view["cliVM"]["vmId"] == active["vmId"]
        await expect(page.locator(".end")).to_contain_text(active["vmId"])
    chat = await _ask(page, f"/api/chats/{page.url.rpartition('/')[2]}")
    assert chat["provider"] == "codex"


async def test_login_in_the_own_browser_is_pasted(world_and_visit: tuple[World, Visit]) -> None:
    _, visit = world_and_visit
    await _connect(visit)
    page = visit.page
    await page.wait_for_selector(WAITING, timeout=SLOW_MS)
    await page.click("#own-browser summary")
    link = page.locator("#own-browser-open")
    await expect(link).to_have_attribute("target", "_blank")
    await expect(link).to_have_attribute("rel", "noopener noreferrer")
    assert (await link.get_attribute("href") or "").startswith("https://auth.openai.com/")
    field, problem = page.locator("#paste-text"), page.locator("#paste-problem")
    await page.click("#paste button[type=submit]")
    await expect(problem).to_contain_text("The field is empty")
    await field.fill("http://localhost:1455/auth/callback?error=denied")
    await page.click("#paste button[type=submit]")
    await expect(problem).to_contain_text("the address holds no code")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_be_focused()
    await visit.assert_accessible()
    await field.fill(CALLBACK.removeprefix("http://"))
    async with _hold_redirect(page):
        await page.keyboard.press("Enter")
        await page.wait_for_selector(ENDED, timeout=SLOW_MS)
        await expect(page.locator("h1")).to_have_text("Codex is connected")


async def test_reload_shows_the_current_state(world_and_visit: tuple[World, Visit]) -> None:
    world, visit = world_and_visit
    session_id = await _connect(visit)
    page = visit.page
    await _until_live(page)
    await page.reload()
    await _until_live(page)
    await _click_inside(page)
    assert await wait_for_screen_events(world.controller.host(), session_id, 1)
    await visit.open("/")  # closing the page ends nothing
    other = await visit.another_page()
    await other.goto(f"/connect/{session_id}")
    await _until_live(other)


async def test_live_view_reconnects_with_a_new_ticket(world_and_visit: tuple[World, Visit]) -> None:
    world, visit = world_and_visit
    session_id = await _connect(visit)
    page = visit.page
    await _until_live(page)
    async with visit.server_outage():
        await world.controller.kill()
        await expect(page.locator("#screen-state")).to_have_text("Interrupted")
        await world.controller.start()
        await expect(page.locator("#screen-state")).to_have_text("Live", timeout=SLOW_MS)
    await _click_inside(page)
    assert await wait_for_screen_events(world.controller.host(), session_id, 1)


async def test_cancelling_asks_first_and_offers_a_retry(
    world_and_visit: tuple[World, Visit],
) -> None:
    _, visit = world_and_visit
    session_id = await _connect(visit)
    page = visit.page
    await page.wait_for_selector(WAITING, timeout=SLOW_MS)
    await page.click("#cancel")
    await page.click("dialog[open] button[value=no]")
    view = await _ask(page, f"/api/auth/session/{session_id}")
    assert view["status"] == "waiting_for_person"
    await page.click("#cancel")
    await page.click("dialog[open] button[value=yes]")
    await page.wait_for_selector(ENDED, timeout=SLOW_MS)
    await expect(page.locator("h1")).to_have_text("Login cancelled")
    await visit.assert_accessible()
    await page.click("#retry")
    await page.wait_for_url(lambda url: "/connect/" in url and session_id not in url)
    await _until_live(page)


async def test_failure_shows_error_and_advice(chromium: Chromium) -> None:
    async with _open_world_and_visit(chromium, {"login_end": "failure"}) as (_, visit):
        session_id = await _connect(visit, "claude_code")
        page = visit.page
        await page.wait_for_selector(ENDED, timeout=SLOW_MS)
        await expect(page.locator("h1")).to_have_text("Claude Code could not be connected")
        end = page.locator(".end")
        await expect(end).to_contain_text("the simulation makes this login fail")
        await expect(end).to_contain_text("login-failed")
        await expect(page.locator("#steps li.failed .step-label")).to_have_text("Log in")
        await visit.assert_accessible()
        await page.click("#retry")
        await page.wait_for_url(lambda url: "/connect/" in url and session_id not in url)


async def test_connect_page_works_on_a_phone(chromium: Chromium) -> None:
    async with _open_world_and_visit(chromium, NEVER, size=PHONE) as (world, visit):
        session_id = await _connect(visit)
        page = visit.page
        await _until_live(page)
        await visit.assert_accessible()
        await page.click("#own-browser summary")
        await visit.assert_accessible()
        await page.click("#screen-keys")
        await expect(page.locator("#screen-typing")).to_be_focused()
        await page.keyboard.insert_text("né")
        await page.keyboard.press("Backspace")
        events = await wait_for_screen_events(world.controller.host(), session_id, 3)
        assert [it["key"] for it in events] == [ord("n"), ord("é"), 0xFF08]
        async with _hold_redirect(page):
            await page.keyboard.press("Enter")
            await page.wait_for_selector(ENDED, timeout=SLOW_MS)
            await visit.assert_accessible()


async def test_text_is_pasted_and_the_keyboard_released(
    world_and_visit: tuple[World, Visit],
) -> None:
    world, visit = world_and_visit
    session_id = await _connect(visit)
    page = visit.page
    await _until_live(page)
    await page.click("#screen-paste")
    await page.fill("#paste-into", "correct €\n")
    await page.click("#paste-dialog button[value=yes]")
    events = await wait_for_screen_events(world.controller.host(), session_id, 9)
    assert [it["key"] for it in events] == [*map(ord, "correct "), 0x01000000 + ord("€")]
    await page.keyboard.press("Control+Alt+KeyX")
    await expect(page.locator("#screen-keys")).to_be_focused()
    await page.click("#screen-full")
    await expect(page.locator("#screen-full")).to_have_text("Exit full screen")
    await page.click("#screen-full")
    await expect(page.locator("#screen-full")).to_have_text("Full screen")


async def test_two_logins_of_one_user_stay_apart(world_and_visit: tuple[World, Visit]) -> None:
    """The wrong-machine fault: after the end every view reads the active CLI machine."""
    world, visit = world_and_visit
    one = await _connect(visit)
    await _until_live(visit.page)
    second = await visit.another_page()
    first, visit.page = visit.page, second
    other = await _connect(visit, "claude_code")
    await _until_live(second)
    await _click_inside(second)
    async with _hold_redirect(second):
        await second.keyboard.press("Enter")
        await second.wait_for_selector(ENDED, timeout=SLOW_MS)
        active = await _ask(second, "/api/vm/active-cli")
        await expect(second.locator(".end")).to_contain_text(active["vmId"])
    await expect(first.locator("#screen-state")).to_have_text("Live")
    await first.bring_to_front()
    await _click_inside(first)
    assert await wait_for_screen_events(world.controller.host(), one, 1)
    async with _hold_redirect(first):
        await first.keyboard.press("Enter")
        await first.wait_for_selector(ENDED, timeout=SLOW_MS)
        views = [await _ask(first, f"/api/auth/session/{it}") for it in (one, other)]
    assert {it["cliVM"]["vmId"] for it in views} == {active["vmId"]}
    assert (await _ask(first, "/api/vm/active-cli"))["vmId"] == active["vmId"]
    assert [it["vm_type"] for it in await _ask(first, "/api/vm/list")] == ["cli"]


async def test_session_of_another_user_is_not_found(world_and_visit: tuple[World, Visit]) -> None:
    world, visit = world_and_visit
    theirs = await world.controller.connect("codex")
    answer = await visit.open(f"/connect/{theirs}")
    assert answer is not None
    assert answer.status == 404
