"""Whether somebody who has proved who they are may still come in. Asked about every request."""

from __future__ import annotations

from polydev.shared.domain import User
from polydev.shared.errors import NotSignedIn


def require_active(user: User) -> None:
    """Raises NotSignedIn."""
    if user.deleting_at is not None:
        raise NotSignedIn("This account is being removed")
    if user.disabled_at is not None:
        raise NotSignedIn("This account is disabled", hint="Ask an administrator")
