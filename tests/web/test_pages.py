"""Sign-in, home, settings and administration pages in Chromium."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from api_users import PASSWORD, create_user
from browser import LAPTOP, PHONE, Chromium, Visit
from controller_world import World, open_world
from playwright.async_api import Page, expect

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEW_PASSWORD = "another password of the tests"
MANY = {"POLYDEV_SIGN_UPS_PER_HOUR": "60000", "POLYDEV_SIGN_INS_PER_HOUR": "60000"}
PAGES = (
    "/",
    "/settings",
    "/administration",
    *(f"/administration/{it}" for it in ("machines", "sessions", "hosts")),
    *(f"/administration/{it}" for it in ("keys", "audit", "doctor")),
    "/no-such-page",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    """World for all tests of this module; logins wait until a code is pasted."""
    async with open_world({"login_end": "never"}, **MANY) as it:
        await it.controller.start()
        await it.controller.call("GET", "/api/account")
        yield it


@pytest_asyncio.fixture(loop_scope="module")
async def visit(world: World, chromium: Chromium) -> AsyncIterator[Visit]:
    async with chromium.visit(url_of(world)) as it:
        yield it


def url_of(world: World) -> str:
    return f"http://127.0.0.1:{world.controller.port}"


async def invited(world: World, **fields: str) -> str:
    made = await world.controller.call("POST", "/api/admin/invitations", fields)
    return str(made["code"])


async def paste_a_code(page: Page) -> None:
    """Complete a started login on its page, which leads to a chat."""
    await page.wait_for_url("**/connect/*")
    await page.click("#own-browser summary")
    await page.fill("#paste-text", "http://localhost:1455/auth/callback?code=a-code")
    await page.click("#paste button[type=submit]")
    await page.wait_for_url("**/chat/*")


async def test_sign_in_page_explains_how_to_create_the_first_account(
    chromium: Chromium,
) -> None:
    async with open_world() as fresh:
        await fresh.controller.start()
        await fresh.controller.call("GET", "/api/account")
        async with chromium.visit(url_of(fresh)) as visit:
            await visit.open("/")
            assert visit.page.url.endswith("/sign-in")
            for path in ("/sign-in", "/sign-up"):
                await visit.open(path)
                command = visit.page.get_by_text("polydev user invite --role administrator")
                await expect(command).to_be_visible()
                await visit.assert_accessible()
            await visit.sign_up(fresh.controller, "ann")
            await visit.context.clear_cookies()
            await visit.open("/sign-in")
            await expect(visit.page.get_by_text("polydev user invite")).to_have_count(0)


async def test_invited_user_signs_up(world: World, visit: Visit) -> None:
    page = visit.page
    code = await invited(world)
    await visit.open(f"/sign-up#invitation={code}&email=ann%40example.org")
    await visit.assert_accessible()
    assert await page.input_value("#invitation") == code
    assert code not in page.url
    await page.fill("#password", "short")
    await page.click("button[type=submit]")
    await expect(page.locator("[data-problem]")).to_contain_text("Password")
    await page.fill("#password", "aaaaaaaaaaaaaaaa")
    await page.click("button[type=submit]")
    await expect(page.locator("[data-problem]")).to_contain_text("repeats a few characters")
    await page.fill("#password", PASSWORD)
    await page.click("button[type=submit]")
    await expect(page.get_by_role("heading", name="Your CLIs")).to_be_visible()


async def test_user_signs_in_to_the_requested_page_and_out(world: World, visit: Visit) -> None:
    ann = await create_user(world.controller, f"ann-{secrets.token_hex(3)}")
    page = visit.page
    await visit.open("/settings")
    assert page.url.endswith("/sign-in?next=%2Fsettings")
    await page.fill("#email", ann.email)
    await page.fill("#password", "not her password at all")
    await page.keyboard.press("Enter")
    await expect(page.locator("[data-problem]")).to_contain_text(
        "The e-mail address or the password is wrong."
    )
    await visit.assert_accessible()
    await page.fill("#password", PASSWORD)
    await page.get_by_role("button", name="Show password").click()
    assert await page.get_attribute("#password", "type") == "text"
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.get_by_role("heading", name="Settings", exact=True)).to_be_visible()
    await page.get_by_role("button", name=re.compile(r"^Sign out \(")).click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await visit.open("/settings")
    assert "/sign-in" in page.url


async def test_open_page_of_a_signed_out_user_leads_to_sign_in(world: World, visit: Visit) -> None:
    """A fragment is refused while the stream of events stays open."""
    await visit.sign_up(world.controller, "ann")
    page = visit.page
    async with page.expect_response("**/api/events?*"):
        await visit.open("/")
    await visit.context.clear_cookies()
    async with page.expect_response("**/fragments/home") as refused:
        await page.evaluate("document.body.dispatchEvent(new Event('polydev:credential'))")
    assert (await refused.value).status == 401
    await expect(page).to_have_url(f"{visit.url}/sign-in?next=%2F")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert set(visit.faults) == {"401 for /fragments/home"}
    visit.faults.clear()


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example", "/\\evil.example"])
async def test_sign_in_never_leads_to_another_site(world: World, visit: Visit, wanted: str) -> None:
    ann = await create_user(world.controller, f"ann-{secrets.token_hex(3)}")
    await visit.page.goto(f"{url_of(world)}/sign-in?next={wanted}")
    await visit.page.fill("#email", ann.email)
    await visit.page.fill("#password", PASSWORD)
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("heading", name="Your CLIs")).to_be_visible()
    assert visit.page.url == f"{url_of(world)}/"


async def test_home_page_follows_a_login_without_reload(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "ann")
    await visit.open("/")
    page = visit.page
    codex = page.locator("#provider-codex")
    await expect(codex).to_contain_text("Not connected")
    await page.evaluate("window.isTheSamePage = true")
    top = await codex.bounding_box()

    other = await visit.another_page()  # started elsewhere: an event updates this page
    await other.goto(f"{url_of(world)}/")
    await other.locator("#provider-codex").get_by_role("button", name="Connect").click()
    await expect(codex).to_contain_text("Waiting for you")
    await expect(codex.get_by_role("link", name="Log in now")).to_be_visible()
    await visit.assert_accessible()
    await paste_a_code(other)
    await expect(codex).to_contain_text("Ready in your machine.")
    await expect(codex.get_by_role("link", name="Chat")).to_be_visible()
    assert await page.evaluate("window.isTheSamePage") is True
    assert await codex.bounding_box() == top


async def test_home_page_repairs_a_stopped_machine(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "ann")
    await visit.open("/")
    page = visit.page
    codex = page.locator("#provider-codex")
    await codex.get_by_role("button", name="Connect").click()
    await paste_a_code(page)
    await visit.open("/")
    await expect(codex).to_contain_text("Connected", timeout=60_000)
    vm_id = await page.evaluate("fetch('/api/vm/active-cli').then(r => r.json()).then(v => v.vmId)")
    await page.evaluate(
        "id => import(document.querySelector('script[type=module]').src)"
        ".then(it => it.api('POST', `/api/vm/${id}/stop`))",
        vm_id,
    )
    await expect(codex).to_contain_text("Its machine is stopped.")
    await visit.assert_accessible()
    await codex.get_by_role("button", name="Start machine").click()
    await expect(codex).to_contain_text("Ready in your machine.")


async def test_token_is_shown_once_and_can_be_revoked(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "ann")
    await visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visit.open("/settings")
    page = visit.page
    await page.get_by_role("button", name="New token").click()
    await visit.assert_accessible()
    await page.fill("#token-name", "<b>nightly</b>")
    await page.get_by_role("button", name="Create token").click()
    made = page.locator("#created-token-text")
    await expect(made).not_to_be_empty()
    text = (await made.text_content()) or ""
    await page.get_by_role("button", name="Copy token").click()
    await page.wait_for_function(
        "async (text) => (await navigator.clipboard.readText()) === text", arg=text
    )
    asked = world.controller.with_token(text)
    assert (await asked.call("GET", "/api/account"))["via"].startswith("token:")
    await page.get_by_role("button", name="Done").click()
    await expect(made).to_be_empty()
    assert text not in await page.content()
    line = page.locator("#tokens .line")
    await expect(line).to_contain_text("<b>nightly</b>")
    await line.get_by_role("button", name="Revoke").click()
    await visit.assert_accessible()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(page.locator("#tokens")).to_contain_text("No tokens")
    async with asked.client() as client:
        assert (await client.get("/api/account")).status_code == 401


async def test_password_change_signs_out_other_browsers(
    world: World, visit: Visit, chromium: Chromium
) -> None:
    email = await visit.sign_up(world.controller, "ann")
    await visit.open("/settings")
    page = visit.page
    async with chromium.visit(url_of(world)) as elsewhere:
        await elsewhere.sign_in(email)
        await elsewhere.open("/")
        await page.fill("#current-password", "wrong wrong wrong")
        await page.fill("#new-password", NEW_PASSWORD)
        await page.get_by_role("button", name="Change password").click()
        await expect(page.locator("#password [data-problem]")).to_contain_text("is wrong")
        await page.fill("#current-password", PASSWORD)
        await page.get_by_role("button", name="Change password").click()
        await expect(page.locator("#status")).to_contain_text("1 other browser was signed out")
        await elsewhere.open("/")
        assert "/sign-in" in elsewhere.page.url
        await elsewhere.sign_in(email, NEW_PASSWORD)


async def test_other_browser_can_be_signed_out(
    world: World, visit: Visit, chromium: Chromium
) -> None:
    email = await visit.sign_up(world.controller, "ann")
    async with chromium.visit(url_of(world)) as elsewhere:
        await elsewhere.sign_in(email)
        await visit.open("/settings")
        await visit.page.locator("#sign-ins").get_by_role("button", name="Sign out").click()
        await expect(visit.page.locator("#sign-ins .line")).to_have_count(1)
        await elsewhere.open("/settings")
        assert "/sign-in" in elsewhere.page.url


async def test_account_deletion_needs_the_typed_address(world: World, visit: Visit) -> None:
    email = await visit.sign_up(world.controller, "ann")
    await visit.open("/settings")
    page = visit.page
    await page.fill("#delete-account-password", PASSWORD)
    await page.get_by_role("button", name="Delete account").click()
    sure = page.get_by_role("button", name="Delete everything")
    await expect(sure).to_be_disabled()
    await page.get_by_label(re.compile("Type “")).fill("somebody@else.example")
    await expect(sure).to_be_disabled()
    await page.get_by_label(re.compile("Type “")).fill(email)
    await sure.click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    users = await world.controller.call("GET", "/api/admin/people")
    assert not any(it["email"] == email and not it["deletingAt"] for it in users)


async def test_administrator_invites_a_user_with_a_link(
    world: World, visit: Visit, chromium: Chromium
) -> None:
    await visit.sign_up(world.controller, "root", "administrator")
    await visit.open("/administration")
    page = visit.page
    await page.get_by_role("button", name="Invite").click()
    await visit.assert_accessible()
    await page.fill("#invite-email", "bob@example.org")
    await page.get_by_role("button", name="Create invitation").click()
    shown = page.locator("#invitation-link")
    await expect(shown).not_to_be_empty()
    link = (await shown.text_content()) or ""
    await page.get_by_role("button", name="Done").click()
    await expect(page.get_by_text("bob@example.org")).to_be_visible()
    async with chromium.visit(url_of(world)) as bobs:
        await bobs.page.goto(link)
        assert await bobs.page.input_value("#email") == "bob@example.org"
        await bobs.page.fill("#password", PASSWORD)
        await bobs.page.click("button[type=submit]")
        await expect(bobs.page.get_by_role("heading", name="Your CLIs")).to_be_visible()
        await bobs.open("/administration")
        await expect(bobs.page.get_by_role("heading", name="Access denied")).to_be_visible()


async def test_host_is_drained_with_a_recorded_reason(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "root", "administrator")
    await visit.open("/administration/hosts")
    page = visit.page
    await page.get_by_role("button", name="Drain").click()
    await page.locator("#reason-input").fill("new memory modules")
    await page.locator("#reason-button").click()
    await expect(page.get_by_text("Drained", exact=True)).to_be_visible()
    await visit.open("/administration/audit?action=host.")
    await expect(page.locator("#section")).to_contain_text("new memory modules")
    await visit.open("/administration/hosts")
    await page.get_by_role("button", name="Activate").click()
    await page.locator("#reason-input").fill("they are in")
    await page.locator("#reason-button").click()
    await expect(page.get_by_text("Active", exact=True)).to_be_visible()


async def test_long_list_is_paginated(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "root", "administrator")
    for _ in range(3):
        await invited(world)
    await visit.open("/administration/audit?limit=2")
    page = visit.page
    first = [await page.locator(".line").nth(it).get_attribute("id") for it in range(2)]
    await page.get_by_role("link", name="Next page").click()
    await expect(page.get_by_role("link", name="First page")).to_be_visible()
    entries = page.locator(".line")
    assert await entries.count() == 2
    assert "cursor=" in page.url
    ids = [await entries.nth(it).get_attribute("id") for it in range(2)]
    assert not set(ids) & set(first)
    await page.get_by_role("link", name="First page").click()
    await page.wait_for_url("**/administration/audit?limit=2")


@pytest.mark.parametrize("parameter", ["user", "person"])
async def test_list_shows_one_user_only(world: World, visit: Visit, parameter: str) -> None:
    """Links that name the user `person` are older."""
    email = await visit.sign_up(world.controller, "root", "administrator")
    account = await (await visit.context.request.get("/api/account")).json()
    await invited(world)
    await visit.open(f"/administration/audit?{parameter}={account['id']}")
    await expect(visit.page.locator("#section")).to_contain_text(f"Actions by {email}")
    entries = visit.page.locator(".line")
    assert await entries.count() == await entries.filter(has_text=email).count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
async def test_page_is_accessible_in_every_size_and_theme(
    world: World, chromium: Chromium, size: tuple[int, int], scheme: str
) -> None:
    async with chromium.visit(url_of(world), size=size, scheme=scheme) as visit:  # type: ignore[arg-type]
        await visit.sign_up(world.controller, "root", "administrator")
        for path in PAGES:
            await visit.open(path)
            if path.endswith("doctor"):
                await expect(visit.page.locator(".findings")).to_be_visible()
            await visit.assert_accessible()


async def test_pages_are_light_and_quick(world: World, visit: Visit) -> None:
    await visit.sign_up(world.controller, "root", "administrator")
    for path in ("/", "/settings", "/administration"):
        sizes: list[int] = []
        painted_ms: list[float] = []
        while (
            len(sizes) < 10 and min(painted_ms, default=9999) > 1000
        ):  # other users work concurrently
            await visit.open(path)
            measured = await visit.page.evaluate(
                """() => [
                  [...performance.getEntriesByType("resource"),
                   ...performance.getEntriesByType("navigation")]
                    .reduce((sum, it) => sum + it.encodedBodySize, 0),
                  performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0]"""
            )
            sizes.append(measured[0])
            painted_ms.append(measured[1])
        assert max(sizes) <= 150 * 1024, (path, sizes)
        assert min(painted_ms) <= 1000, (path, painted_ms)


async def test_chosen_theme_applies_from_the_first_paint(visit: Visit) -> None:
    await visit.open("/sign-in")
    await visit.page.get_by_role("button", name="Switch theme").click()
    answer = await visit.open("/sign-in")
    assert answer is not None
    assert 'data-theme="dark"' in await answer.text()


async def test_keyboard_reaches_the_content(visit: Visit) -> None:
    await visit.open("/sign-up")
    await visit.page.keyboard.press("Tab")
    await expect(visit.page.get_by_role("link", name="Skip to content")).to_be_focused()
    await visit.page.keyboard.press("Enter")
    await visit.page.keyboard.press("Tab")
    await expect(visit.page.locator("#invitation")).to_be_focused()
