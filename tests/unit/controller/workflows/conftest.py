"""Database fixture of tests without a controller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polydev.controller.store.engine.database import Database, open_database


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Each test that asks for it runs on both databases."""
    opened = open_database(database_url, tmp_path)
    await opened.upgrade()
    yield opened
    await opened.close()
