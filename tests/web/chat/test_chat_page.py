"""Chat page over simulated machines: turns, permissions, hostile output."""

from __future__ import annotations

import pytest
from browser import Visit
from chat_page import (
    allow,
    answers,
    call_api,
    create_chat,
    open_chat,
    send_message,
    wait_until_idle,
)
from playwright.async_api import expect

# -- turns -----------------------------------------------------------------------------------------


async def test_message_gets_an_answer(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await expect(page.locator("[data-empty]")).to_be_visible()
    await send_message(page, "Is there\nanybody?")
    await wait_until_idle(page)
    await expect(page.locator(".user-message")).to_have_text("Is there\nanybody?")
    await expect(answers(page).last).to_contain_text("Is there anybody?")
    await expect(page.locator("[data-empty]")).to_be_hidden()
    await expect(page.locator("[data-announcements]")).to_contain_text("anybody?")
    await expect(page.locator("[data-announcements]")).to_contain_text("Codex has finished")
    await visit.assert_accessible()


async def test_enter_sends_and_shift_enter_starts_a_line(visit: Visit) -> None:
    await create_chat(visit)
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
    await expect(visit.page.locator(".user-message")).to_have_text("one\n\ntwo")


async def test_thoughts_tools_and_plans_show_their_state(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "think: I had better look\nplan\nrun: echo here I am")
    await allow(page, 1)
    await wait_until_idle(page)
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


async def test_failed_turn_can_be_retried(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "fail: the model is tired")
    await wait_until_idle(page)
    problem = page.locator(".turn-problem")
    await expect(problem).to_be_visible()
    await visit.assert_accessible()
    await problem.get_by_role("button", name="Try again").click()
    await wait_until_idle(page, turns=2)
    await expect(page.locator(".user-message")).to_have_count(2)
    await expect(page.get_by_role("button", name="Try again")).to_have_count(1)


async def test_turn_can_be_stopped(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "slowly: 400")
    await expect(answers(page).last).to_contain_text("piece 3 of 400")
    await expect(page.locator("[data-send]")).to_be_hidden()
    await expect(page.locator("[data-composer-status]")).to_contain_text("Codex is working")
    await page.get_by_role("button", name="Stop Codex").click()
    await wait_until_idle(page)
    await expect(page.locator(".turn-end")).to_contain_text("Stopped")
    await send_message(page, "and now?")
    await wait_until_idle(page, turns=2)


async def test_stopped_machine_can_be_started_from_the_chat(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    vm_id = await page.locator("[data-machine]").get_attribute("data-machine")
    await call_api(visit, "POST", f"/api/vm/{vm_id}/stop")
    await expect(page.locator(".location-machine")).to_contain_text("Stopped")
    await page.locator("textarea").fill("Are you there?")
    await page.locator("textarea").press("Enter")
    await expect(page.locator("[data-composer-error]")).to_contain_text(
        "Your CLI machine is stopped"
    )
    await expect(page.locator("textarea")).to_have_value("Are you there?")
    await visit.assert_accessible()
    await page.get_by_role("button", name="Start machine").click()
    await expect(page.locator(".location-machine")).to_contain_text("Running")
    await expect(page.locator("[data-composer-error]")).to_be_empty()
    await page.locator("textarea").press("Enter")
    await wait_until_idle(page)
    await expect(answers(page).last).to_contain_text("Are you there?")


# -- permissions -----------------------------------------------------------------------------------
async def test_permission_is_allowed_with_a_key(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "write notes.txt: remember the milk")
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_contain_text("Codex asks for permission")
    await expect(card).to_contain_text("notes.txt")
    await expect(card.locator(".diff .added")).to_contain_text("remember the milk")
    await expect(page.locator("[data-announcements]")).to_contain_text("asks for permission")
    await visit.assert_accessible()
    await allow(page, 1)
    await wait_until_idle(page)
    answered = page.locator(".permission")
    await expect(answered).to_have_attribute("data-answer", "allowed")
    await expect(answered).to_contain_text("You chose: Allow")
    await expect(page.locator(".tool").last).to_have_attribute("data-state", "completed")
    await expect(page.locator("textarea")).to_be_focused()


async def test_permission_is_rejected_with_a_click(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "run: rm -r everything")
    await page.get_by_role("button", name="Reject").click()
    await wait_until_idle(page)
    await expect(page.locator(".permission")).to_have_attribute("data-answer", "refused")
    await expect(answers(page).last).to_contain_text("You did not allow it")


async def test_early_key_press_answers_no_permission(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await page.evaluate("performance.now = () => 0")  # the card has only just appeared
    await send_message(page, "run: echo 1")
    card = page.locator(".permission[data-state=open]")
    await expect(card).to_be_focused()
    for key in ("Enter", "Space", "1"):
        await page.keyboard.press(key)
    await page.wait_for_timeout(300)
    await expect(card).to_be_visible()
    await expect(card.locator("button").first).to_be_enabled()
    await page.evaluate("delete performance.now")
    await page.keyboard.press("1")
    await expect(page.locator(".permission")).to_have_attribute("data-answer", "allowed")


async def test_permission_does_not_take_the_focus_from_a_draft(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "slowly: 8\nrun: echo 1")
    await page.locator("textarea").fill("my next thought")
    await page.wait_for_selector(".permission[data-state=open]")
    await expect(page.locator("textarea")).to_be_focused()
    await expect(page.locator("textarea")).to_have_value("my next thought")
    await page.locator("textarea").press("Enter")
    await expect(page.locator(".turn")).to_have_count(1)
    await expect(page.locator("[data-composer-status]")).to_contain_text(
        "is waiting for your permission"
    )


async def test_two_tabs_stay_in_sync(visit: Visit) -> None:
    chat_id = await create_chat(visit)
    first, second = visit.page, await visit.another_page()
    await open_chat(second, chat_id)
    await send_message(first, "run: echo both")
    await expect(second.locator(".permission[data-state=open]")).to_be_visible()
    await second.get_by_role("button", name="Allow", exact=False).first.click()
    for page in (first, second):
        await wait_until_idle(page)
        await expect(page.locator(".permission")).to_contain_text("You chose: Allow")
    logs = [page.locator("[data-log]") for page in (first, second)]
    await expect(logs[1]).to_have_text(await logs[0].inner_text(), use_inner_text=True)


# -- hostile output --------------------------------------------------------------------------------


async def test_model_output_is_never_script(visit: Visit) -> None:
    await create_chat(visit)
    page = visit.page
    await send_message(page, "markdown")
    await wait_until_idle(page)
    answer = answers(page).last
    await expect(answer.locator("h3")).to_have_text("A heading")
    await expect(answer.locator("td").first).to_have_text("a")
    await expect(answer).to_contain_text("<script>document.body.dataset.hostile")
    await expect(answer.locator("script, img, [onerror]")).to_have_count(0)
    await expect(answer.get_by_role("link")).to_have_count(1)
    await answer.get_by_text("Do not press").click()
    assert await page.evaluate("document.body.dataset.hostile") is None
    await visit.assert_accessible()


@pytest.mark.parametrize("hostile", ["<img src=x onerror=alert(1)>", "\u202eevil", "x" * 120])
async def test_title_is_text(visit: Visit, hostile: str) -> None:
    chat_id = await create_chat(visit)
    await call_api(visit, "PATCH", f"/api/chats/{chat_id}", {"title": hostile})
    await open_chat(visit.page, chat_id)
    await expect(visit.page.locator(".chat-row .chat-title")).to_have_text(
        hostile.replace("\u202e", "")
    )
    await visit.assert_accessible()
