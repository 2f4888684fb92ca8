"""Check that an authenticated user's account is active, at every request."""

from __future__ import annotations

from polydev.shared.domain import User
from polydev.shared.errors import NotSignedIn


def require_active(user: User) -> None:
    """Raise NotSignedIn if the account is disabled or being deleted."""
    if user.deleting_at is not None:
        raise NotSignedIn("This account is being deleted")
    if user.disabled_at is not None:
        raise NotSignedIn("This account is disabled", hint="Ask an administrator")
