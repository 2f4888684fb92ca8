"""Hibernated machines on the pages."""

from __future__ import annotations

from browser import PHONE, Chromium, Visit
from chat_page import (
    answers,
    call_api,
    connect,
    create_chat,
    open_world_and_visit,
    send_message,
    wait_until_idle,
)
from controller_world import World
from playwright.async_api import expect


async def _hibernate(world: World, visit: Visit, vm_id: str) -> None:
    await call_api(visit, "POST", f"/api/vm/{vm_id}/hibernate")
    await expect(visit.page.locator("body")).to_be_visible()
    while (await world.states())[vm_id] != "hibernated":
        await visit.page.wait_for_timeout(50)


async def _cli_machine_id(visit: Visit) -> str:
    return str((await call_api(visit, "GET", "/api/vm/active-cli"))["vmId"])


async def test_machine_hibernates_and_resumes_with_reasons(chromium: Chromium) -> None:
    async with open_world_and_visit(chromium) as (world, visit):
        await connect(visit, "codex")
        vm_id, page = await _cli_machine_id(visit), visit.page
        await visit.open("/machine")
        await page.get_by_role("button", name="Hibernate").click()
        await expect(page.locator(".machine-badge")).to_have_text("Hibernated")
        await expect(page.locator(".lead")).to_contain_text("It resumes when you use it")
        await expect(page.locator(".facts")).to_contain_text("just now: requested")
        await visit.assert_accessible()
        await visit.open("/")
        codex = page.locator("#provider-codex")
        await expect(codex).to_contain_text("Connected")
        await expect(codex).to_contain_text("resumes from hibernation")
        await expect(codex.get_by_role("link", name="Chat")).to_be_visible()
        await visit.open("/settings")
        await expect(page.locator(".badge.attention")).to_have_count(0)

        await create_chat(visit)
        await expect(page.locator(".location-machine")).to_contain_text("Hibernated")
        await send_message(page, "Are you there?")
        await wait_until_idle(page)
        await expect(page.locator(".turn-output .progress-note")).to_have_text(
            "The machine resumed from hibernation"
        )
        await expect(answers(page).last).to_contain_text("Are you there?")
        await visit.open("/machine")
        await expect(page.locator(".facts")).to_contain_text(
            "a message in a chat. Its memory was restored"
        )
        await _hibernate(world, visit, vm_id)
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".machine-badge")).to_have_text("Running")


async def test_typing_resumes_the_machine_and_an_open_page_does_not(
    chromium: Chromium,
) -> None:
    async with open_world_and_visit(chromium, size=PHONE, scheme="dark") as (world, visit):
        await connect(visit, "codex")
        vm_id, page = await _cli_machine_id(visit), visit.page
        await visit.open(f"/terminal/{vm_id}")
        screen, state = page.locator(".xterm-rows"), page.locator("[data-state]")
        await expect(screen).to_contain_text("$")
        await page.keyboard.type("echo before\n")
        await _hibernate(world, visit, vm_id)
        await expect(state).to_have_text("Hibernated: type to resume")
        await page.reload()  # returning to the page resumes it
        await expect(state).to_have_text("Connected")

        await _hibernate(world, visit, vm_id)
        await expect(state).to_have_text("Hibernated: type to resume")
        await expect(screen).to_contain_text("[The machine is hibernated. Type to resume it.]")
        await visit.assert_accessible()
        other = await visit.another_page()  # an event arrives while this page is in the background
        await other.goto("/machine")
        await expect(other.locator(".machine-badge")).to_have_text("Hibernated")
        await visit.assert_accessible()
        await other.close()
        await page.keyboard.type("x")
        await expect(state).to_have_text("Connected")
        assert (await world.states())[vm_id] == "running"

        await _hibernate(world, visit, vm_id)
        await visit.open(f"/files/{vm_id}")
        await expect(
            page.get_by_text("This folder is empty").or_(page.locator("[data-entries] tr")).first
        ).to_be_visible()
        assert (await world.states())[vm_id] == "running"
