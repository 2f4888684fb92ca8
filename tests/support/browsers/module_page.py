"""Load the pages' ES modules in Chromium without a controller, under the pages' policy.

shown = await modules.run("return (await load('chat/render/text.js')).visible(given)", "a text")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from browser import Chromium, Visit, packages
from playwright.async_api import Route

from polydev.controller.web.rendering.assets import Assets
from polydev.controller.web.rendering.render import policy_of

URL = "http://modules.test"
_PAGE = (
    "<!doctype html><html lang=en><title>Modules</title>"
    "<link rel=icon href=data:,><main></main><div id=status></div>"
)


class ModulePage:
    """A page that can load any of the modules."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.page = visit.page

    async def run(self, body: str, given: Any = None) -> Any:
        """Run a function body with `given` and `load`, and return its result."""
        return await self.page.evaluate(
            f"async (given) => {{ const load = (name) => import(`/static/${{name}}`); {body} }}",
            given,
        )

    async def steady(self) -> None:
        """Wait until the page has loaded, run and reported."""
        await self.page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))"
        )


@asynccontextmanager
async def open_module_page(chromium: Chromium) -> AsyncIterator[ModulePage]:
    """Open a page of modules; fails at the end if it had faults, like every visit."""
    assets = Assets(packages())
    async with chromium.visit(URL) as visit:

        async def answer(route: Route) -> None:
            path = route.request.url.removeprefix(URL)
            asset = assets.find(path.removeprefix("/static/"))
            if path == "/":
                headers = {"Content-Security-Policy": policy_of()}
                await route.fulfill(body=_PAGE, content_type="text/html", headers=headers)
            elif asset is None:
                await route.fulfill(status=404, body=json.dumps({"code": "missing"}))
            else:
                await route.fulfill(path=asset.path, content_type=asset.media_type)

        await visit.context.route(f"{URL}/**", answer)
        await visit.open("/")
        yield ModulePage(visit)
