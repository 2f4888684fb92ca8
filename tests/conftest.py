"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import hypothesis
import pytest
import sqlite_template
from browser import Chromium, a_chromium
from postgres import Cluster, a_cluster

# A shell that starts tests in the background has SIGINT ignored, and programs inherit that: then
# the commands under test could not be interrupted either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Machines are busy: how long one example takes says nothing.
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
    """Files that take minutes first: last, they would have a processor idle."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server of this test process' own."""
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgresql_url(postgres: Cluster) -> Iterator[str]:
    """A fresh PostgreSQL database with this version's tables."""
    url = postgres.database()
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The test runs twice, each time with a database of its own: DATABASE_URL for it."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return _sqlite(tmp_path)


@pytest.fixture
def some_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of the two, always the same for a test: for what builds on rows that tests of the store
    have tried on both, and differs by nothing else."""
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
    """A Chromium of this test process' own; each test has windows of its own in it."""
    with a_chromium() as it:
        yield it
