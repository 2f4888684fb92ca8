"""Sealing and opening with one key. Nothing else in the controller touches `cryptography`.

scrypt takes 16 MiB and some 50 ms: it runs in threads, and whoever makes a `Sealer` says how many
may run at once. A derived key lives no longer than the one opening it was derived for, but for a
key that has just sealed: it may open its box once, within a minute, since a login's credential is
delivered right after it was sealed. ENCRYPTION_KEY, which opens every box, lives here all the time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import SecretStr

MAX_PLAINTEXT_BYTES = 1024 * 1024
SCRYPT_COST = 16384
"""The parameter n of RFC 7914: with r = 8 it takes 16 MiB."""

_SALT_BYTES = 32
_IV_BYTES = 16
_TAG_BYTES = 16
_KEY_BYTES = 32
_CACHE_S = 60.0
_CACHED_KEYS = 256


@dataclass(frozen=True, slots=True)
class SealedBox:
    """What sealing makes of a plaintext: the four columns, as base64."""

    ciphertext: str
    iv: str
    tag: str
    salt: str


class Sealer:
    """One key's text, as it stands in ENCRYPTION_KEY."""

    def __init__(self, secret: SecretStr, semaphore: asyncio.Semaphore) -> None:
        self._secret = secret
        self._semaphore = semaphore
        self._just_sealed: dict[bytes, bytes] = {}
        """Salt to derived key."""

    async def seal(self, plaintext: bytes, data: bytes | None) -> SealedBox:
        """Seal under a fresh salt and IV; `data` is authenticated with it, not stored."""
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise ValueError("plaintext is larger than the vault takes")
        salt, iv = os.urandom(_SALT_BYTES), os.urandom(_IV_BYTES)
        key = await self._derive_key(salt)
        sealed = AESGCM(key).encrypt(iv, plaintext, data)
        self._cache_key(salt, key)
        return SealedBox(
            ciphertext=_encode(sealed[:-_TAG_BYTES]),
            iv=_encode(iv),
            tag=_encode(sealed[-_TAG_BYTES:]),
            salt=_encode(salt),
        )

    async def open(self, box: SealedBox, data: bytes | None) -> bytes | None:
        """The plaintext; None if another key sealed it, or anything of it was changed."""
        try:
            ciphertext, iv = _decode(box.ciphertext, None), _decode(box.iv, _IV_BYTES)
            tag, salt = _decode(box.tag, _TAG_BYTES), _decode(box.salt, _SALT_BYTES)
        except (binascii.Error, ValueError):
            return None
        key = self._just_sealed.pop(salt, None) or await self._derive_key(salt)
        try:
            return AESGCM(key).decrypt(iv, ciphertext + tag, data)
        except InvalidTag:
            return None

    def _cache_key(self, salt: bytes, key: bytes) -> None:
        if len(self._just_sealed) < _CACHED_KEYS:
            self._just_sealed[salt] = key
            loop = asyncio.get_running_loop()
            loop.call_later(_CACHE_S, self._just_sealed.pop, salt, None)

    async def _derive_key(self, salt: bytes) -> bytes:
        async with self._semaphore:
            return await asyncio.to_thread(self._scrypt, salt)

    def _scrypt(self, salt: bytes) -> bytes:
        text = self._secret.get_secret_value().encode()
        return Scrypt(salt=salt, length=_KEY_BYTES, n=SCRYPT_COST, r=8, p=1).derive(text)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: str, length: int | None) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if _encode(raw) != text or length not in (None, len(raw)):
        raise ValueError("not the base64 that was written")
    return raw
