"""Navigation that the pages' scripts start."""

from __future__ import annotations

import asyncio

from browser import Chromium
from module_page import URL, open_module_page
from playwright.async_api import Request, Route

REDIRECTS = """
    const { fetchFragment } = await load("shared/fragments.js");
    const { go, redirect } = await load("shared/navigation.js");
    setTimeout(async () => {
        await fetchFragment("/fragments/gone");
        await fetchFragment("/fragments/gone");
        redirect("/elsewhere");
        go("/chosen");
    });
"""


async def test_only_the_first_automatic_redirect_counts(chromium: Chromium) -> None:
    """A second one would abort it. The user's own choice does."""
    async with open_module_page(chromium) as modules:
        visited: list[str] = []
        is_chosen = asyncio.Event()

        async def lead_away(route: Route) -> None:
            await route.fulfill(status=204, headers={"Polydev-Redirect": "/machine"})

        async def never_answer(_: Route) -> None:
            """Leave the page loading, as a slow server does."""

        def record(request: Request) -> None:
            if request.is_navigation_request():
                visited.append(request.url.removeprefix(URL))
                if visited[-1] == "/chosen":
                    is_chosen.set()

        await modules.page.route("**/fragments/gone", lead_away)
        await modules.page.route(f"{URL}/machine", never_answer)
        await modules.page.route(f"{URL}/elsewhere", never_answer)
        modules.page.on("request", record)
        await modules.run(REDIRECTS)
        async with asyncio.timeout(60):
            await is_chosen.wait()
        assert visited == ["/machine", "/chosen"]
        await modules.page.wait_for_url(f"{URL}/chosen")
        modules.visit.faults.clear()  # nothing is there
