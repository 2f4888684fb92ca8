"""A store of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polydev.store.database import Database, open_database


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Each test that asks for it runs on both databases."""
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    yield database
    await database.close()
