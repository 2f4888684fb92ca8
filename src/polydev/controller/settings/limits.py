"""Time limits of connect sessions and machine operations."""

from __future__ import annotations

from pydantic import Field

from polydev.shared.settings.base import Settings


class LimitSettings(Settings):
    """Time limits of connect sessions and machine operations, in seconds."""

    sessions_at_once: int = Field(16, ge=1)
    """Connect sessions of all users that run at once. Sessions that wait for their user do not
    count; others wait in a queue."""
    queue_limit_s: float = Field(600, gt=0)
    """Time limit of a connect session in the queue."""
    machine_limit_s: float = Field(60, gt=0)
    """Time limit for starting a machine."""
    healthy_limit_s: float = Field(60, gt=0)
    """Time limit until the browser service answers."""
    login_start_limit_s: float = Field(60, gt=0)
    """Time limit until the CLI prints its login URL. Claude Code takes nearly 30 s in an emulated
    machine."""
    person_limit_s: float = Field(900, gt=0)
    """Time that the user gets for the login."""
    capture_limit_s: float = Field(30, gt=0)
    """Time limit for reading and sealing the credentials."""
    write_limit_s: float = Field(60, gt=0)
    """Time limit for writing credentials into the CLI machine and checking them there."""
    destroy_limit_s: float = Field(30, gt=0)
    """Time limit for destroying a machine."""
    stop_limit_s: float = Field(60, gt=0)
    """Time limit for stopping a machine."""
