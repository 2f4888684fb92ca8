"""The local administrator, authenticated by a token only.

The token is in POLYDEV_ADMIN_TOKEN, or in a file that only the controller's user and root can read.
Memory holds only its hash.
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

TOKEN_FILE = "admin-token"  # noqa: S105  (a file name)
MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 4096

ADMINISTRATOR = UserId("admin")


class AdminToken:
    """Authenticates the local administrator's token."""

    def __init__(self, administrator: User, token: str) -> None:
        self._administrator = administrator
        self._digest = random_tokens.digest(token)

    def authenticate(self, token: str, request: RequestInfo) -> Caller | None:
        """Return the administrator if the token is theirs."""
        if not random_tokens.matches(token, self._digest):
            return None
        return Caller(self._administrator, frozenset(Scope), LOCAL, request.source)


async def load_admin_token(database: Database, folder: Path, token: SecretStr | None) -> AdminToken:
    """Load the token from the settings or its file; create it.

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
        with suppress(AlreadyExists):  # from an earlier start, or another controller
            await users.insert(connection, administrator)
        found = await users.find(connection, ADMINISTRATOR)
    return AdminToken(found or administrator, text)


def _read_or_create(path: Path) -> str:
    """Return the file's text; create it atomically if it is missing."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return path.read_text("ascii").strip()
