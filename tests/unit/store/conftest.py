"""A store of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polydev.store.database import Database, open_database


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(None, tmp_path)
    await database.upgrade()
    yield database
    await database.close()
