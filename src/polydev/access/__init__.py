"""Who asks: one local administrator, known by a token.

`app.py` makes it at start, the API asks it about every request. Only a hash of the token is kept in
memory; the token itself is the administrator's to have: in POLYDEV_ADMIN_TOKEN, or in a file that
only the controller's user and root can read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from polydev.access.caller import LOCAL, Asked, Caller
from polydev.domain import Person, PersonId, Role, Scope, now
from polydev.errors import BadSettings, NotSignedIn
from polydev.store import people
from polydev.store.database import Database

__all__ = ["Access", "Asked", "Caller", "kept_key", "open_access"]

TOKEN_FILE = "admin-token"  # noqa: S105  (a file's name)
MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 4096

ADMINISTRATOR = PersonId("admin")


class Access:
    """Tells who holds a token."""

    def __init__(self, administrator: Person, token: str) -> None:
        self._administrator = administrator
        self._digest = _digest(token)

    async def caller(self, asked: Asked) -> Caller:
        """Whose request it is. Raises NotSignedIn."""
        authorization = asked.authorization
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
            raise NotSignedIn(
                "This needs a token", hint="Send it as `Authorization: Bearer <token>`"
            )
        if not hmac.compare_digest(_digest(token), self._digest):
            raise NotSignedIn(
                "This token is not known", hint=f"It is in the controller's folder, {TOKEN_FILE}"
            )
        return Caller(self._administrator, frozenset(Scope), LOCAL, asked.source)


async def open_access(database: Database, folder: Path, token: SecretStr | None) -> Access:
    """The administrator's access. Without a token in the settings, one is made once and kept."""
    if token is None:
        text = await asyncio.to_thread(_kept_token, folder / TOKEN_FILE)
    else:
        text = token.get_secret_value().strip()
    if not MIN_TOKEN_CHARACTERS <= len(text) <= MAX_TOKEN_CHARACTERS:
        where = "POLYDEV_ADMIN_TOKEN" if token is not None else str(folder / TOKEN_FILE)
        raise BadSettings(
            f"{where} must hold between {MIN_TOKEN_CHARACTERS} and {MAX_TOKEN_CHARACTERS} "
            "characters"
        )
    async with database.write() as connection:
        person = await people.get(connection, ADMINISTRATOR)
        if person is None:
            person = Person(ADMINISTRATOR, "admin@localhost", now(), Role.ADMINISTRATOR)
            await people.add(connection, person)
    return Access(person, text)


def kept_key(path: Path) -> bytes:
    """32 random bytes of this controller's own, made once and kept in a file. Blocks."""
    return bytes.fromhex(_kept(path, lambda: secrets.token_hex(32)))


def _kept_token(path: Path) -> str:
    return _kept(path, lambda: secrets.token_urlsafe(32))


def _kept(path: Path, make: Callable[[], str]) -> str:
    """A file's text, made and written whole if there is none."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        pass
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{make()}\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    return path.read_text("ascii").strip()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
