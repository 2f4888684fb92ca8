"""What every test of workflows and API stands on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from controller_world import World, a_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as it:
        yield it
