"""Fixtures and settings of every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import hypothesis
import pytest
import sqlite_template
from browser import Chromium, running_chromium
from postgres import Cluster, running_cluster

# A shell ignores SIGINT for background jobs, and programs inherit that. The tests interrupt the
# commands under test, so restore the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# On a busy machine, the duration of one example means nothing.
hypothesis.settings.register_profile(
    "polydev", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("polydev")

_LONG = {
    "test_acp_agents.py",
    "test_hibernation_real.py",
    "test_openapi.py",
    "test_soak.py",
    "test_warm_real.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start files that take minutes first, so that no processor idles at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server for this test process."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgresql_url(postgres: Cluster) -> Iterator[str]:
    """A fresh PostgreSQL database with this version's tables."""
    url = postgres.database()
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATABASE_URL of a fresh database: the test runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return _sqlite(tmp_path)


@pytest.fixture
def some_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATABASE_URL on SQLite or PostgreSQL, chosen by the test's name.

    For code that builds on the store: the store's own tests run on both.
    """
    if crc32(request.node.name.encode()) % 2:
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return _sqlite(tmp_path)


def _sqlite(folder: Path) -> str:
    file = folder / "polydev.db"
    sqlite_template.put_database(file)
    return f"sqlite:///{file}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A Chromium for this test process; each test opens its own windows."""
    with running_chromium() as it:
        yield it
