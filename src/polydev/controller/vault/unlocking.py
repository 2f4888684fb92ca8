"""Unlocking at start: match each key with its row of `vault_keys`, and refuse wrong keys.

A key without a canary is new. It is accepted in an empty database, or beside a key that opens what
is there, which is how a rotation starts. New keys must be hard to guess; a known key is accepted
whatever its strength.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Container, Sequence
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.queries.connect import credentials, vault_keys
from polydev.controller.vault.vault import OTHER_KEYS, Vault
from polydev.shared.domain import VaultKey
from polydev.shared.errors import BadSettings, CredentialDamaged, WrongEncryptionKey
from polydev.shared.hints import Hint

log = logging.getLogger("polydev.controller.vault")

MIN_CHARACTERS = 16
MIN_DIFFERENT = 6

_WRONG_KEY_HINT = Hint.USE_FIRST_KEY.text()


async def unlock(
    connection: AsyncConnection,
    encryption_key: SecretStr,
    now: datetime,
    others: Sequence[SecretStr] = (),
) -> Vault:
    """Return the vault of this database. Needs a writing transaction.

    Raises:
        WrongEncryptionKey: No key opens a canary, or a row that an earlier controller left; or the
            known keys seal nothing any more.
        BadSettings: A new key is too weak.
    """
    await vault_keys.lock(connection)
    known = await vault_keys.list_all(connection)
    found: dict[str, SecretStr] = {}
    new: list[SecretStr] = []
    for secret in (encryption_key, *others):
        key_id = await _find_key_id(secret, known)
        if key_id is None:
            new.append(secret)
        else:
            found.setdefault(key_id, secret)
    if known and not found:
        raise WrongEncryptionKey("ENCRYPTION_KEY does not open this database", hint=_WRONG_KEY_HINT)
    await _require_used_key(connection, found)
    proven = None if found else await _find_legacy_key(connection, (encryption_key, *others))
    for secret in _unique(new):
        if secret is not proven:
            require_strong(secret, _setting_name(secret, encryption_key))
        row = await _add_key(connection, secret, now)
        found[row.key_id] = secret
    return _build_vault(encryption_key, found)


def require_strong(secret: SecretStr, name: str = "ENCRYPTION_KEY") -> None:
    """Refuse a key that is easy to guess. Raises BadSettings."""
    text = secret.get_secret_value()
    if len(text) < MIN_CHARACTERS or len(set(text)) < MIN_DIFFERENT:
        raise BadSettings(
            f"{name} is too weak: it needs {MIN_CHARACTERS} characters, {MIN_DIFFERENT} of them "
            "different",
            hint="Set it to a long random text, for example the output of `openssl rand -hex 32`",
        )


async def _find_key_id(secret: SecretStr, known: Sequence[VaultKey]) -> str | None:
    for row in known:
        if await Vault(secret, row.key_id).opens_canary(row):
            return row.key_id
    return None


async def _require_used_key(connection: AsyncConnection, found: Container[str]) -> None:
    """Refuse keys that open no row, such as an old key after a rotation."""
    using = [key_id for key_id in await vault_keys.get_uses(connection) if key_id is not None]
    missing = [key_id for key_id in using if key_id not in found]
    if found and using and missing == using:
        raise WrongEncryptionKey(
            f"ENCRYPTION_KEY opens no row of this database: {', '.join(using)} sealed them all",
            hint=_WRONG_KEY_HINT,
        )
    for key_id in missing:
        log.warning("%s seals rows, but this controller does not have it", key_id)


async def _find_legacy_key(
    connection: AsyncConnection, texts: Sequence[SecretStr]
) -> SecretStr | None:
    """Return the key that opens an earlier controller's rows. None if there are no such rows.

    Raises WrongEncryptionKey if no key opens them.
    """
    legacy = await credentials.find_any_without_key_id(connection)
    if legacy is None:
        return None
    for secret in texts:
        try:
            await Vault(secret, "being-tried").open(legacy)
        except CredentialDamaged:
            continue
        return secret
    raise WrongEncryptionKey(
        "ENCRYPTION_KEY does not open the credentials of the earlier controller",
        hint=_WRONG_KEY_HINT,
    )


async def _add_key(connection: AsyncConnection, secret: SecretStr, now: datetime) -> VaultKey:
    row = await Vault(secret, f"key-{secrets.token_hex(6)}").canary(now)
    await vault_keys.insert(connection, row)
    return row


def _build_vault(encryption_key: SecretStr, found: dict[str, SecretStr]) -> Vault:
    text = encryption_key.get_secret_value()
    current = next(one for one, secret in found.items() if secret.get_secret_value() == text)
    return Vault(encryption_key, current, found)


def _unique(texts: Sequence[SecretStr]) -> list[SecretStr]:
    return list({secret.get_secret_value(): secret for secret in texts}.values())


def _setting_name(secret: SecretStr, encryption_key: SecretStr) -> str:
    is_current = secret.get_secret_value() == encryption_key.get_secret_value()
    return "ENCRYPTION_KEY" if is_current else f"A key of {OTHER_KEYS}"
