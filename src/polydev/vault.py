"""The vault: seals credentials and opens them again. Sole user of `cryptography`.

Workflows seal what a login left and open it to write it into the person's machine; the program's
start unlocks the vault, which proves that ENCRYPTION_KEY is the one this database was sealed with.
It must not know providers' formats, machines or HTTP, and it logs nothing.

Sealing, as SPEC section 6 has it: AES-256-GCM; the key is scrypt (N=16384, r=8, p=1, 32 bytes) of
ENCRYPTION_KEY's text with a fresh 32-byte salt; the IV is 16 fresh bytes; ciphertext, IV, tag and
salt are base64. Rows written here are also bound to their person, provider and own id (additional
authenticated data) and name the key that sealed them. Rows without a key id are those of an
earlier Node.js controller (`crypto.scryptSync`, `aes-256-gcm`, no additional data).

scrypt takes 16 MiB and some 50 ms: it runs in threads, few at a time. A derived key lives no longer
than the one sealing or opening that it was derived for.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import CredentialId, PersonId, SealedCredential, VaultKey
from polydev.errors import CredentialDamaged, WrongEncryptionKey
from polydev.store import credentials, keys

MAX_PLAINTEXT_BYTES = 1024 * 1024

_SALT_BYTES = 32
_IV_BYTES = 16
_TAG_BYTES = 16
_KEY_BYTES = 32
_DERIVATIONS_AT_ONCE = 2

_WRONG_KEY_HINT = "Start Polydev with the ENCRYPTION_KEY that this database was made with"


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose credential it is: part of what the tag authenticates, so rows cannot be swapped."""

    credential_id: CredentialId
    user_id: PersonId
    provider: str

    def authenticated_data(self) -> bytes:
        """The additional authenticated data, the same bytes for the same binding for ever."""
        return _authenticated_data("credential", self.user_id, self.provider, self.credential_id)


@dataclass(frozen=True, slots=True)
class _Box:
    """What sealing makes of a plaintext: the four columns, as base64."""

    ciphertext: str
    iv: str
    tag: str
    salt: str


class Vault:
    """Seals and opens with one key. Made by `unlock`, or with a known `key_id` in tests."""

    def __init__(self, encryption_key: SecretStr, key_id: str) -> None:
        self._secret = encryption_key
        self._turn = asyncio.Semaphore(_DERIVATIONS_AT_ONCE)
        self.key_id = key_id

    def __repr__(self) -> str:
        return f"Vault({self.key_id!r})"

    async def seal(self, plaintext: bytes, to: Binding, now: datetime) -> SealedCredential:
        """Seal credentials for one person, provider and credential id."""
        box = await self._seal(plaintext, to.authenticated_data())
        return SealedCredential(
            credential_id=to.credential_id,
            user_id=to.user_id,
            provider=to.provider,
            encrypted_credentials=box.ciphertext,
            encryption_iv=box.iv,
            encryption_tag=box.tag,
            encryption_salt=box.salt,
            key_id=self.key_id,
            created_at=now,
        )

    async def open(self, row: SealedCredential) -> bytes:
        """The plaintext of a row.

        Raises: WrongEncryptionKey if another key sealed it; CredentialDamaged if any column, or
        the person or provider it stands under, is not what was sealed.
        """
        if row.key_id not in (self.key_id, None):
            raise WrongEncryptionKey(
                f"Credential {row.credential_id} was sealed with key {row.key_id}, "
                f"not with {self.key_id}",
                hint=_WRONG_KEY_HINT,
            )
        data = None
        if row.key_id is not None:
            data = Binding(row.credential_id, row.user_id, row.provider).authenticated_data()
        plaintext = await self._open(_box(row), data)
        if plaintext is None:
            raise CredentialDamaged(
                f"The stored {row.provider} credential {row.credential_id} does not open: "
                "it was changed, or moved from another person or provider",
                hint=f"Connect {row.provider} again",
            )
        return plaintext

    async def canary(self, now: datetime) -> VaultKey:
        """A row that later starts try their key on."""
        box = await self._seal(b"polydev", _authenticated_data("canary", self.key_id))
        return VaultKey(self.key_id, box.ciphertext, box.iv, box.tag, box.salt, now)

    async def opens_canary(self, row: VaultKey) -> bool:
        """Whether this vault's key sealed the canary."""
        box = _Box(row.canary, row.canary_iv, row.canary_tag, row.canary_salt)
        return await self._open(box, _authenticated_data("canary", row.key_id)) == b"polydev"

    async def _seal(self, plaintext: bytes, data: bytes | None) -> _Box:
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise ValueError("plaintext is larger than the vault takes")
        salt, iv = os.urandom(_SALT_BYTES), os.urandom(_IV_BYTES)
        async with self._turn:
            sealed = await asyncio.to_thread(self._encrypt, salt, iv, plaintext, data)
        return _Box(
            ciphertext=_text(sealed[:-_TAG_BYTES]),
            iv=_text(iv),
            tag=_text(sealed[-_TAG_BYTES:]),
            salt=_text(salt),
        )

    async def _open(self, box: _Box, data: bytes | None) -> bytes | None:
        try:
            ciphertext, iv = _bytes(box.ciphertext, None), _bytes(box.iv, _IV_BYTES)
            tag, salt = _bytes(box.tag, _TAG_BYTES), _bytes(box.salt, _SALT_BYTES)
        except (binascii.Error, ValueError):
            return None
        async with self._turn:
            return await asyncio.to_thread(self._decrypt, salt, iv, ciphertext + tag, data)

    def _encrypt(self, salt: bytes, iv: bytes, plaintext: bytes, data: bytes | None) -> bytes:
        return AESGCM(self._derive(salt)).encrypt(iv, plaintext, data)

    def _decrypt(self, salt: bytes, iv: bytes, sealed: bytes, data: bytes | None) -> bytes | None:
        try:
            return AESGCM(self._derive(salt)).decrypt(iv, sealed, data)
        except InvalidTag:
            return None

    def _derive(self, salt: bytes) -> bytes:
        text = self._secret.get_secret_value().encode()
        return Scrypt(salt=salt, length=_KEY_BYTES, n=16384, r=8, p=1).derive(text)


async def unlock(connection: AsyncConnection, encryption_key: SecretStr, now: datetime) -> Vault:
    """The vault for this database: finds which key ENCRYPTION_KEY is, or makes it the first one.

    Raises: WrongEncryptionKey if it opens neither a canary nor, in a database that an earlier
    controller left, one of its rows.
    """
    known = await keys.every(connection)
    for row in known:
        vault = Vault(encryption_key, row.key_id)
        if await vault.opens_canary(row):
            return vault
    if known:
        raise WrongEncryptionKey(
            "ENCRYPTION_KEY does not open what this database holds", hint=_WRONG_KEY_HINT
        )
    vault = Vault(encryption_key, f"key-{secrets.token_hex(6)}")
    legacy = await credentials.any_without_key_id(connection)
    if legacy is not None and await vault._open(_box(legacy), None) is None:
        raise WrongEncryptionKey(
            "ENCRYPTION_KEY does not open the credentials of the earlier controller",
            hint=_WRONG_KEY_HINT,
        )
    await keys.add(connection, await vault.canary(now))
    return vault


def _box(row: SealedCredential) -> _Box:
    return _Box(
        row.encrypted_credentials, row.encryption_iv, row.encryption_tag, row.encryption_salt
    )


def _authenticated_data(*parts: str) -> bytes:
    return b"polydev-vault-1:" + json.dumps(parts, ensure_ascii=True).encode()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(text: str, length: int | None) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if _text(raw) != text or length not in (None, len(raw)):
        raise ValueError("not the base64 that was written")
    return raw
