"""Fixtures of the chat page: its modules in Chromium, and the page over simulated machines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from browser import Chromium, Visit
from chat_page import connect, open_world_and_visit
from controller_world import World
from module_page import ModulePage, open_module_page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def modules(chromium: Chromium) -> AsyncIterator[ModulePage]:
    async with open_module_page(chromium) as it:
        yield it


@pytest.fixture
async def world_and_visit(chromium: Chromium) -> AsyncIterator[tuple[World, Visit]]:
    async with open_world_and_visit(chromium) as it:
        yield it


@pytest.fixture
async def visit(world_and_visit: tuple[World, Visit]) -> Visit:
    """Window of a signed-in user who has connected Codex."""
    await connect(world_and_visit[1], "codex")
    return world_and_visit[1]
