"""Machine, terminal and files pages over simulated machines."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from browser import PHONE, Chromium, Visit
from controller_world import World, open_world
from playwright.async_api import Page, expect


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world(POLYDEV_FILE_LIMIT_MIB="2") as it:
        await it.controller.start()
        yield it


@asynccontextmanager
async def open_visit(
    world: World, chromium: Chromium, name: str = "ann", **how: object
) -> AsyncIterator[Visit]:
    """Window of a signed-in user."""
    url = f"http://127.0.0.1:{world.controller.port}"
    async with chromium.visit(url, **how) as visit:  # type: ignore[arg-type]
        await visit.sign_up(world.controller, name)
        yield visit


async def create_machine(visit: Visit) -> str:
    """Create a machine on the page and wait until it runs; its id."""
    await visit.open("/machine")
    await visit.page.get_by_role("button", name="Create machine").click()
    await visit.page.wait_for_url("**/machine/vm-*")
    await expect(visit.page.locator(".machine-badge")).to_have_text("Running")
    return visit.page.url.rpartition("/")[2]


async def until_shown(page: Page, text: str) -> None:
    await expect(page.locator(".xterm-rows")).to_contain_text(text)


async def test_machine_is_created_stopped_started_and_deleted(
    world: World, chromium: Chromium
) -> None:
    async with open_visit(world, chromium) as visit:
        page = visit.page
        await visit.open("/machine")
        await expect(page.get_by_text("No machine yet")).to_be_visible()
        await visit.assert_accessible()
        vm_id = await create_machine(visit)
        await expect(page.locator('[data-log="console"] pre')).to_contain_text("POLYDEV-READY")
        id_middle, icon_middle = await page.locator("#vm-id, [data-copy=vm-id] svg").evaluate_all(
            "all => all.map(it => it.getBoundingClientRect()).map(it => (it.top + it.bottom) / 2)"
        )
        assert abs(id_middle - icon_middle) <= 2
        chart = page.locator('[data-chart="memory"]')
        await expect(chart.locator("[data-now]")).to_have_text(re.compile(r"^[\d.]+ [MG]iB$"))
        await expect(chart.locator("[data-summary]")).to_have_text(
            re.compile(r"^Peak [\d.]+ [MG]iB in the last .*\. The machine has 1 GiB\.$")
        )
        label = await chart.locator("svg").get_attribute("aria-label")
        assert re.match(r"Memory on the host: .* now\. Peak .* in the last", label or "")
        assert await chart.locator("path.chart-line").count() == 1
        await visit.assert_accessible()

        await page.get_by_role("button", name="Stop").click()
        await page.get_by_role("button", name="Cancel").click()
        assert (await world.states())[vm_id] == "running"
        await page.get_by_role("button", name="Stop").click()
        await page.get_by_role("button", name="Stop machine").click()
        await expect(page.locator(".machine-badge")).to_have_text("Stopped")
        await expect(page.get_by_role("link", name="Terminal")).to_have_count(0)
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator(".machine-badge")).to_have_text("Running")

        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("button", name="Delete machine").click()
        await expect(page).to_have_url(f"{visit.url}/machine")
        await expect(page.get_by_text("No machine yet")).to_be_visible()


async def test_terminal_reconnects_with_its_screen(world: World, chromium: Chromium) -> None:
    async with open_visit(world, chromium) as visit:
        page = visit.page
        vm_id = await create_machine(visit)
        await visit.open(f"/terminal/{vm_id}")
        await until_shown(page, "$")
        await page.keyboard.type("echo Grüße\n")
        await until_shown(page, "Grüße")
        await page.keyboard.type("stty size\n")
        rows = await page.evaluate("document.querySelector('.xterm-rows').childElementCount")
        await until_shown(page, f"{rows} ")
        await visit.assert_accessible()

        async with visit.server_outage():
            await world.controller.kill()
            await expect(page.locator("[data-state]")).to_have_text("Reconnecting")
            await world.controller.start()
            await expect(page.locator("[data-state]")).to_have_text("Connected")
        await until_shown(page, "Grüße")
        await page.keyboard.type("echo back\n")
        await until_shown(page, "back")

        await page.get_by_role("link", name="Terminal 2").click()
        await expect(page.locator(".xterm-rows")).not_to_contain_text("Grüße")
        await until_shown(page, "$")
        await page.keyboard.type("exit\n")
        await page.get_by_role("button", name="Reopen terminal").click()
        await until_shown(page, "$")


async def test_files_are_uploaded_replaced_and_downloaded(
    world: World, chromium: Chromium, tmp_path: Path
) -> None:
    async with open_visit(world, chromium) as visit:
        page = visit.page
        vm_id = await create_machine(visit)
        await visit.open(f"/files/{vm_id}")
        await expect(page.get_by_text("This folder is empty")).to_be_visible()
        await visit.assert_accessible()

        small, large = tmp_path / "größe & more.txt", tmp_path / "large.bin"
        small.write_bytes(b"content \x00 of a file" * 1000)
        large.write_bytes(bytes(3 * 1024 * 1024))
        await page.locator("[data-input]").set_input_files([small, large])
        row = page.get_by_role("row", name=small.name)
        await expect(row).to_contain_text("18.6 KiB")
        await expect(page.locator("[data-uploads]")).to_contain_text("larger than 2 MiB")
        await visit.assert_accessible()
        await page.get_by_role("button", name="Dismiss").click()

        async with page.expect_download() as coming:
            await row.get_by_role("link", name="Download").click()
        download = await coming.value
        assert download.suggested_filename == small.name
        assert (await asyncio.to_thread(Path(await download.path()).read_bytes)) == (
            small.read_bytes()
        )

        small.write_bytes(b"new")
        await page.locator("[data-input]").set_input_files([small])
        await page.get_by_role("button", name="Replace").click()
        await expect(row).to_contain_text("3 B")


async def test_folders_are_created_renamed_and_deleted(
    world: World, chromium: Chromium, tmp_path: Path
) -> None:
    async with open_visit(world, chromium) as visit:
        page = visit.page
        await visit.open(f"/files/{await create_machine(visit)}")
        small = tmp_path / "größe & more.txt"
        small.write_bytes(b"new")
        await page.locator("[data-input]").set_input_files([small])
        row = page.get_by_role("row", name=small.name)
        await expect(row).to_be_visible()

        await page.get_by_role("button", name="New folder").click()
        await page.get_by_label("Name", exact=True).fill("a folder")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("row").nth(1)).to_contain_text("a folder")

        await row.get_by_role("button", name="Rename").click()
        await page.get_by_label("Name", exact=True).fill("plain.txt")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("row", name="plain.txt")).to_be_visible()

        await page.get_by_role("link", name="a folder").click()
        await expect(page.get_by_text("This folder is empty")).to_be_visible()
        await page.locator("[data-input]").set_input_files([small])
        await expect(row).to_be_visible()
        await page.go_back()
        await expect(page.get_by_role("row", name="plain.txt")).to_be_visible()
        for name in ("a folder", "plain.txt"):
            await page.get_by_role("button", name=f"Delete {name}").click()
            await page.get_by_role("button", name="Delete", exact=True).click()
            await expect(page.get_by_role("row", name=name)).to_have_count(0)
        await expect(page.get_by_text("This folder is empty")).to_be_visible()


async def test_hostile_file_names_are_text_and_can_be_deleted(
    world: World, chromium: Chromium
) -> None:
    names = [
        b"<img src=x onerror=alert(1)>",
        b"two\nlines \x1b[31m\x07",
        "evil\u202etxt.exe".encode(),
        b"not \xff\xfe utf-8",
        b"%2e%2e&path=%00#?+ ",
        b"a" * 255,
    ]
    async with open_visit(world, chromium) as visit:
        page = visit.page
        vm_id = await create_machine(visit)
        [root] = world.agent.state_dir.rglob("simulated-root")
        for name in names:
            (Path(str(root / "root")) / name.decode("utf-8", "surrogateescape")).write_bytes(name)
        await visit.open(f"/files/{vm_id}")
        await expect(page.locator("[data-entries] tr")).to_have_count(len(names))
        shown = await page.locator("[data-entries] th").all_inner_texts()
        assert "<img src=x onerror=alert(1)>" in [it.strip() for it in shown]
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", "".join(shown))
        await visit.assert_accessible()
        for left in reversed(range(len(names))):
            await page.locator('[data-entries] button[title="Delete"]').first.click()
            await page.get_by_role("button", name="Delete", exact=True).click()
            await expect(page.locator("[data-entries] tr")).to_have_count(left)


async def test_machine_pages_fit_a_phone(world: World, chromium: Chromium) -> None:
    how = {"size": PHONE, "scheme": "dark"}
    async with open_visit(world, chromium, **how) as visit:
        page = visit.page
        vm_id = await create_machine(visit)
        await visit.assert_accessible()
        await visit.open(f"/terminal/{vm_id}")
        await until_shown(page, "$")
        await page.keyboard.type("half")
        await page.get_by_role("button", name="Ctrl").tap()
        await page.keyboard.type("c")
        await until_shown(page, "^C")
        await visit.assert_accessible()
        await visit.open(f"/files/{vm_id}?path=/")
        await expect(page.get_by_role("link", name="root")).to_be_visible()
        await visit.assert_accessible()
