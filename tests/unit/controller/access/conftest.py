"""Fixtures for access on a real store; each test runs on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from access_world import MakeAccess, access_with

from polydev.controller.access import Access
from polydev.controller.store.engine.database import Database, open_database


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    yield database
    await database.close()


@pytest.fixture
def make_access(store: Database, tmp_path: Path) -> MakeAccess:
    """Create access with other settings on the same store."""
    (tmp_path / "controller").mkdir(exist_ok=True)
    return partial(access_with, store, tmp_path)


@pytest.fixture
async def access(make_access: MakeAccess) -> Access:
    """Access with open sign-up."""
    return await make_access(sign_up="open")
