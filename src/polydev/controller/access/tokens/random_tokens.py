"""Secrets that Polydev itself hands out: random texts of which only a hash is kept.

32 random bytes need no slow hash: SHA-256 cannot be turned round for them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

MAX_CHARACTERS = 256


def new_id() -> str:
    """Names a token, a sign-in or an invitation; not secret."""
    return secrets.token_hex(8)


def new_secret() -> str:
    """43 characters that nobody guesses."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def matches(secret: str, kept: str) -> bool:
    """Whether that is the secret of which this was kept."""
    return hmac.compare_digest(digest(secret), kept)
