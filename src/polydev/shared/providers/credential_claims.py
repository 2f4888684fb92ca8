"""Account and expiry that validated credentials contain.

`x-polydev` in the provider's schema says where they are. Nothing here is printed or logged.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from polydev.shared.providers.checks import value_at
from polydev.shared.providers.registry import Provider


def login_expiry(provider: Provider, credentials: bytes) -> datetime | None:
    """Expiry of the login unless it is renewed; None if the credentials do not contain it."""
    if provider.credentials.ends is None:
        return None
    expiry_ms = value_at(_parsed(credentials), provider.credentials.ends)
    if not isinstance(expiry_ms, int):
        return None
    try:
        return datetime.fromtimestamp(expiry_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def same_login(one: bytes, other: bytes) -> bool:
    """Compare two credentials as JSON values."""
    return bool(_parsed(one) == _parsed(other))


def same_account(provider: Provider, known: bytes, other: bytes) -> bool:
    """Check that `other` belongs to the account that `known` names, if any."""
    ours, theirs = _parsed(known), _parsed(other)
    ids = [(value_at(ours, it), value_at(theirs, it)) for it in provider.credentials.account]
    return all(known_id in (None, other_id) for known_id, other_id in ids)


def _parsed(credentials: bytes) -> Any:
    return json.loads(credentials)
