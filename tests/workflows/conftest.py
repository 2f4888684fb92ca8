"""What every test of workflows and API stands on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from controller_world import World, a_world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The soaks first: they take minutes, and last they would have a processor idle."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as it:
        yield it
