"""The key from which tokens of browser machines are derived, shared by all controllers.

It is a sealed row. The key file of an earlier version is imported once, so running machines keep
their tokens.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.system import shared_secrets
from polydev.controller.vault import Vault
from polydev.shared.domain import now

_NAME = "browser-token-key"
_BYTES = 32


async def token_key(database: Database, vault: Vault, earlier: Path) -> bytes:
    """Load the key, or create it. `earlier`: the key file of an earlier version.

    Raises: WrongEncryptionKey, CredentialDamaged.
    """
    imported = await asyncio.to_thread(_read_key_file, earlier)
    async with database.read() as connection:
        row = await shared_secrets.find(connection, _NAME)
    if row is None:
        sealed = await vault.seal_secret(_NAME, imported or secrets.token_bytes(_BYTES), now())
        async with database.write() as connection:
            await shared_secrets.insert_if_absent(connection, sealed)
            row = await shared_secrets.find(connection, _NAME)
            assert row is not None  # noqa: S101  (this or another controller has inserted it)
    key = await vault.open_secret(row)
    if imported is not None:
        await asyncio.to_thread(earlier.unlink, missing_ok=True)
    return key


def _read_key_file(file: Path) -> bytes | None:
    try:
        return bytes.fromhex(file.read_text("ascii").strip())
    except FileNotFoundError:
        return None
