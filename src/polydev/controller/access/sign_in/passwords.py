"""Passwords: which are taken, and how they are kept and looked at.

Argon2id with RFC 9106's second profile (64 MiB, three passes). Whether an address is known must
not show in how long an answer takes, so a password for nobody is looked at just as long. Few are
looked at together and few wait, so that many who ask cost neither memory nor everybody's time. It
must not know who has which password: hashes come in and go out.
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
"""Each takes 64 MiB and a few threads."""
_MAX_WAITING = 32
"""How many more may wait for that: about five seconds' work. Limits count networks and addresses,
and somebody may have very many of both."""


def validate_new(password: str, address: str) -> str:
    """A new password as it is hashed: in Unicode's form NFKC, however the keyboard wrote it.

    Raises PasswordRefused, which says what to do.
    """
    text = _normalize(password)
    if len(text) < MIN_CHARACTERS:
        raise PasswordRefused(
            f"This password has fewer than {MIN_CHARACTERS} characters",
            hint="A few words that do not belong together are easy to keep in mind",
        )
    if len(_encode(text)) > MAX_BYTES:
        raise PasswordRefused(f"This password has more than {MAX_BYTES} bytes")
    folded = text.casefold()
    if len(set(folded)) < _MIN_DIFFERENT:
        raise PasswordRefused(
            "This password repeats a few characters",
            hint=f"Use at least {_MIN_DIFFERENT} different ones",
        )
    if folded in (address, address.partition("@")[0]):
        raise PasswordRefused("This password is the e-mail address", hint="Choose another")
    return text


def generate() -> str:
    """A new password that nobody can guess, for a person to type once."""
    return "-".join(secrets.token_hex(3) for _ in range(4))


class Passwords:
    """Hashes and looks at passwords, in threads and a few at a time."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._pending = 0

    async def prepare(self) -> None:
        """Make what the first look at an unknown address would otherwise take longer for."""
        await asyncio.to_thread(getattr, self, "_dummy_hash")

    async def hash(self, accepted_password: str) -> str:
        """The text that is kept. Raises TooManyRequests."""
        async with self._slot():
            return await asyncio.to_thread(self._hasher.hash, _encode(accepted_password))

    async def matches(self, password: str, kept: str | None) -> bool:
        """Whether it is the password of which that was kept; as slow when nothing was kept.

        Raises TooManyRequests.
        """
        text = _normalize(password)
        if len(_encode(text)) > MAX_BYTES:
            return False
        async with self._slot():
            return await asyncio.to_thread(self._matches, _encode(text), kept)

    async def rehash(self, password: str, kept: str) -> str | None:
        """Another hash for a password that matched, if that one was made with less effort."""
        if not self._hasher.check_needs_rehash(kept):
            return None
        return await self.hash(_normalize(password))

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._pending >= _CONCURRENT + _MAX_WAITING:
            raise TooManyRequests(
                "Too many passwords are being looked at", hint="Try again", retry_after_s=5
            )
        self._pending += 1
        try:
            async with self._slots:
                yield
        finally:
            self._pending -= 1

    def _matches(self, password: bytes, kept: str | None) -> bool:
        try:
            self._hasher.verify(self._dummy_hash if kept is None else kept, password)
        except (VerificationError, InvalidHashError):
            return False
        return kept is not None

    @cached_property
    def _dummy_hash(self) -> str:
        return self._hasher.hash(secrets.token_bytes(32))


def _normalize(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
