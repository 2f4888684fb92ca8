"""Fixtures for tests of workflows and the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import memory_folder
import pytest
from controller_world import World, open_world
from postgres import Cluster


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder.temporary_folder() as folder:
        yield folder


@pytest.fixture
def postgresql_url(postgres: Cluster) -> Iterator[str]:
    """A fresh PostgreSQL database with tables and journal."""
    url = postgres.database(with_journal=True)
    yield url
    postgres.drop(url)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as it:
        yield it
