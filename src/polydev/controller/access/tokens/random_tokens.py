"""Generate random secrets and hash them for storage.

32 random bytes need no slow hash: SHA-256 of them cannot be reversed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

MAX_CHARACTERS = 256


def new_id() -> str:
    """Return a public id for a token, sign-in or invitation."""
    return secrets.token_hex(8)


def new_secret() -> str:
    """Return a secret of 43 random characters."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return the hash to store."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def matches(secret: str, stored_hash: str) -> bool:
    """Compare a secret with a stored hash in constant time."""
    return hmac.compare_digest(digest(secret), stored_hash)
