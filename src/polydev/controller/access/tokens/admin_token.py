"""The administrator of this machine: known by a token of its own, without an account's ways in.

The token is in POLYDEV_ADMIN_TOKEN, or in a file that only the controller's user and root can read.
Only a hash of it is kept in memory.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from polydev.controller.access.caller import LOCAL, Caller, RequestInfo
from polydev.controller.access.tokens import random_tokens
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.shared.domain import Role, Scope, User, UserId, now
from polydev.shared.errors import AlreadyExists, BadSettings

TOKEN_FILE = "admin-token"  # noqa: S105  (a file's name)
MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 4096

ADMINISTRATOR = UserId("admin")


class AdminToken:
    """Knows the token."""

    def __init__(self, administrator: User, token: str) -> None:
        self._administrator = administrator
        self._digest = random_tokens.digest(token)

    def authenticate(self, token: str, asked: RequestInfo) -> Caller | None:
        """The administrator, if that is their token."""
        if not random_tokens.matches(token, self._digest):
            return None
        return Caller(self._administrator, frozenset(Scope), LOCAL, asked.source)


async def load_admin_token(database: Database, folder: Path, token: SecretStr | None) -> AdminToken:
    """The administrator. Without a token in the settings, one is made once and kept.

    Raises BadSettings.
    """
    if token is None:
        text = await asyncio.to_thread(_read_or_create, folder / TOKEN_FILE)
    else:
        text = token.get_secret_value().strip()
    if not MIN_TOKEN_CHARACTERS <= len(text) <= MAX_TOKEN_CHARACTERS:
        where = "POLYDEV_ADMIN_TOKEN" if token is not None else str(folder / TOKEN_FILE)
        raise BadSettings(
            f"{where} must hold between {MIN_TOKEN_CHARACTERS} and {MAX_TOKEN_CHARACTERS} "
            "characters"
        )
    administrator = User(ADMINISTRATOR, "admin@localhost", now(), Role.ADMINISTRATOR)
    async with database.write() as connection:
        with suppress(AlreadyExists):  # since an earlier start, or one of another controller
            await users.insert(connection, administrator)
        there = await users.find(connection, ADMINISTRATOR)
    return AdminToken(there or administrator, text)


def _read_or_create(path: Path) -> str:
    """A file's text, made and written whole if there is none."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        pass
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    return path.read_text("ascii").strip()
