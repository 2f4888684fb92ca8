"""The chat page's modules, in a page of Chromium that the tests of a file share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from browser import Chromium
from module_page import ModulePage, a_module_page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def modules(chromium: Chromium) -> AsyncIterator[ModulePage]:
    async with a_module_page(chromium) as it:
        yield it
