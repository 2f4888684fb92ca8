"""Validate, hash and verify passwords.

Argon2id with RFC 9106's second profile (64 MiB, three passes). Response time must not reveal
whether an address is known, so an unknown one is verified against a dummy hash. Concurrency and
queue are bounded, so that a flood of requests exhausts neither memory nor time.
"""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from polydev.shared.errors import PasswordRefused, TooManyRequests

MIN_CHARACTERS = 12
MAX_BYTES = 256
_MIN_DIFFERENT = 5
_CONCURRENT = 2
"""Each hash takes 64 MiB and several threads."""
_MAX_WAITING = 32
"""Queue length: about five seconds of work. Rate limits count networks and addresses, and an
attacker may have many of both."""


def validate_new(password: str, address: str) -> str:
    """Return a new password in NFKC, the form that is hashed.

    Raises PasswordRefused.
    """
    text = _normalize(password)
    if len(text) < MIN_CHARACTERS:
        raise PasswordRefused(
            f"The password has fewer than {MIN_CHARACTERS} characters",
            hint="A few unrelated words are easy to remember",
        )
    if len(_encode(text)) > MAX_BYTES:
        raise PasswordRefused(f"The password has more than {MAX_BYTES} bytes")
    folded = text.casefold()
    if len(set(folded)) < _MIN_DIFFERENT:
        raise PasswordRefused(
            "The password repeats a few characters",
            hint=f"Use at least {_MIN_DIFFERENT} different characters",
        )
    if folded in (address, address.partition("@")[0]):
        raise PasswordRefused("The password is the e-mail address", hint="Choose another")
    return text


def generate() -> str:
    """Return a random password that is easy to type."""
    return "-".join(secrets.token_hex(3) for _ in range(4))


class Passwords:
    """Hashes and verifies passwords in threads, a few at a time."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._pending = 0

    async def prepare(self) -> None:
        """Create the dummy hash in advance."""
        await asyncio.to_thread(getattr, self, "_dummy_hash")

    async def hash(self, accepted_password: str) -> str:
        """Return the hash to store. Raises TooManyRequests."""
        async with self._slot():
            return await asyncio.to_thread(self._hasher.hash, _encode(accepted_password))

    async def matches(self, password: str, stored_hash: str | None) -> bool:
        """Verify a password; equally slow without a stored hash. Raises TooManyRequests."""
        text = _normalize(password)
        if len(_encode(text)) > MAX_BYTES:
            return False
        async with self._slot():
            return await asyncio.to_thread(self._matches, _encode(text), stored_hash)

    async def rehash(self, password: str, stored_hash: str) -> str | None:
        """Return a new hash if the stored one is too weak."""
        if not self._hasher.check_needs_rehash(stored_hash):
            return None
        return await self.hash(_normalize(password))

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._pending >= _CONCURRENT + _MAX_WAITING:
            raise TooManyRequests(
                "Too many passwords are being checked", hint="Try again", retry_after_s=5
            )
        self._pending += 1
        try:
            async with self._slots:
                yield
        finally:
            self._pending -= 1

    def _matches(self, password: bytes, stored_hash: str | None) -> bool:
        try:
            self._hasher.verify(self._dummy_hash if stored_hash is None else stored_hash, password)
        except (VerificationError, InvalidHashError):
            return False
        return stored_hash is not None

    @cached_property
    def _dummy_hash(self) -> str:
        return self._hasher.hash(secrets.token_bytes(32))


def _normalize(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
