"""What checked credentials tell of themselves: whose they are, and when they end.

Where each provider tells it stands beside its schema (`x-polydev`). Asked when credentials are
captured and when a machine's are compared with the vault's. Nothing here is printed or logged.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from polydev.shared.providers.checks import at
from polydev.shared.providers.registry import Provider


def end_of_login(provider: Provider, credentials: bytes) -> datetime | None:
    """When the login ends, unless it is renewed; None if the credentials do not tell."""
    if provider.credentials.ends is None:
        return None
    told = at(_parsed(credentials), provider.credentials.ends)
    if not isinstance(told, int):
        return None
    try:
        return datetime.fromtimestamp(told / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def same_login(one: bytes, other: bytes) -> bool:
    """Whether both say the same, however they are written."""
    return bool(_parsed(one) == _parsed(other))


def same_account(provider: Provider, known: bytes, other: bytes) -> bool:
    """Whether the others are of the known ones' account, as far as the known ones tell."""
    theirs, others = _parsed(known), _parsed(other)
    names = [(at(theirs, it), at(others, it)) for it in provider.credentials.account]
    return all(mine in (None, name) for mine, name in names)


def _parsed(credentials: bytes) -> Any:
    return json.loads(credentials)
