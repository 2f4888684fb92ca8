"""Helpers for tests of accounts: requests, and access with given settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from pydantic import SecretStr

from polydev.controller.access import Access, RequestInfo
from polydev.controller.access.sign_in.passwords import Passwords
from polydev.controller.access.tokens.admin_token import load_admin_token
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database

TOKEN = "a-token-of-the-tests"
PASSWORD = "correct horse battery"
MakeAccess = Callable[..., Awaitable[Access]]


def quick_passwords(time_cost: int = 1) -> Passwords:
    """Return a cheap password hasher, for speed."""
    return Passwords(PasswordHasher(time_cost=time_cost, memory_cost=64, parallelism=1))


def from_browser(cookie: str | None = None, **more: Any) -> RequestInfo:
    """Return a request that a browser sends from the controller's own page."""
    defaults: dict[str, Any] = {
        "authorization": None,
        "cookie": cookie,
        "csrf": None,
        "changes": False,
        "source": "192.0.2.7",
        "origin": "http://localhost:4000",
        "host": "localhost:4000",
    }
    return RequestInfo(**{**defaults, **more})


def with_token(token: str, **more: Any) -> RequestInfo:
    """Return a request that a script sends."""
    return RequestInfo(f"Bearer {token}", None, None, True, "192.0.2.8", **more)


async def access_with(
    store: Database, folder: Path, passwords: Passwords | None = None, **settings: Any
) -> Access:
    """Create access with these settings; several on one store act as controllers."""
    values = {"state_dir": folder, "admin_token": SecretStr(TOKEN), **settings}
    found = ControllerSettings(**values).check()
    local = await load_admin_token(store, found.controller_dir, found.admin_token)
    return Access(store, found, local, passwords or quick_passwords())
