"""Who may come in, on a real store: each test runs on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr

from polydev.access import Access, Asked
from polydev.access.local import open_local
from polydev.access.passwords import Passwords
from polydev.settings import ControllerSettings
from polydev.store.database import Database, open_database

TOKEN = "a-token-of-the-tests"
MakeAccess = Callable[..., Awaitable[Access]]


def quick_passwords(time_cost: int = 1) -> Passwords:
    """Hashing that takes no time: what it protects from does not attack tests."""
    return Passwords(PasswordHasher(time_cost=time_cost, memory_cost=64, parallelism=1))


def from_browser(cookie: str | None = None, **more: Any) -> Asked:
    """A request that a browser sends for the controller's own page."""
    told = {
        "authorization": None,
        "cookie": cookie,
        "csrf": None,
        "changes": False,
        "source": "192.0.2.7",
        "origin": "http://localhost:4000",
        "host": "localhost:4000",
    }
    return Asked(**{**told, **more})


def with_token(token: str, **more: Any) -> Asked:
    """A request that a script sends."""
    return Asked(f"Bearer {token}", None, None, True, "192.0.2.8", **more)


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    yield database
    await database.close()


@pytest.fixture
async def make_access(store: Database, tmp_path: Path) -> MakeAccess:
    """Access with these settings; another on the same store is another controller's."""
    (tmp_path / "controller").mkdir()

    async def make(passwords: Passwords | None = None, **settings: Any) -> Access:
        told = {"state_dir": tmp_path, "admin_token": SecretStr(TOKEN), **settings}
        known = {name: told.pop(name) for name in list(told) if name.startswith("SUPABASE")}
        found = ControllerSettings(**told, **known).check()
        local = await open_local(store, found.controller_dir, found.admin_token)
        return Access(store, found, local, passwords or quick_passwords())

    return make


@pytest.fixture
async def access(make_access: MakeAccess) -> Access:
    """With sign-up open."""
    return await make_access(sign_up="open")
