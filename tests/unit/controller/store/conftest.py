"""Fixtures: a fresh store for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from owned_rows import fill, rows_of_others
from postgres import Cluster

from polydev.controller.store.engine.database import Database, open_database


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A fresh store; tests that use it run on both databases."""
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    yield database
    await database.close()


@pytest.fixture(scope="module")
def filled_url(postgres: Cluster) -> Iterator[str]:
    """A PostgreSQL database with rows of Ann and Ben in every table; read-only."""
    url = postgres.database()
    asyncio.run(fill(url))
    yield url
    postgres.drop(url)


@pytest.fixture
async def filled(filled_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(filled_url, tmp_path)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def others_rows(filled_url: str) -> dict[str, list[str]]:
    """All rows that are not Ben's."""

    async def look() -> dict[str, list[str]]:
        async with await psycopg.AsyncConnection.connect(filled_url) as raw:
            return await rows_of_others(raw)

    return asyncio.run(look())
