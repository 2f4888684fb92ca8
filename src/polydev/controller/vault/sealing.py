"""Sealing and opening with one key. No other module uses `cryptography`.

scrypt takes 16 MiB and about 50 ms, so it runs in threads, and the caller limits how many run at
once. A derived key is dropped after use, except right after a sealing: a login's credential is
delivered immediately, so the key stays for one opening within a minute. ENCRYPTION_KEY, which opens
every box, stays in memory anyway.
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
    """A sealed plaintext: the four columns, as base64."""

    ciphertext: str
    iv: str
    tag: str
    salt: str


class Sealer:
    """Seals and opens with one key, given as the text of ENCRYPTION_KEY."""

    def __init__(self, secret: SecretStr, semaphore: asyncio.Semaphore) -> None:
        self._secret = secret
        self._semaphore = semaphore
        self._just_sealed: dict[bytes, bytes] = {}
        """Salt to derived key."""

    async def seal(self, plaintext: bytes, data: bytes | None) -> SealedBox:
        """Seal with a random salt and IV. `data` is authenticated, but not stored."""
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise ValueError("plaintext exceeds the limit of the vault")
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
        """Return the plaintext. None if another key sealed it, or if it was changed."""
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
        raise ValueError("not canonical base64 of the right length")
    return raw
