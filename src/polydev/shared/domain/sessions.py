"""Connect sessions and their steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.credentials import CredentialKind
from polydev.shared.domain.ids import SessionId, UserId, VmId


class SessionStatus(StrEnum):
    """Where a connect session is; the last four are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting_for_person"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in _ENDS


_ENDS = frozenset(
    {
        SessionStatus.COMPLETED,
        SessionStatus.FAILED,
        SessionStatus.EXPIRED,
        SessionStatus.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True)
class ConnectSession:
    """A row of `auth_sessions`: one attempt to log one CLI in."""

    session_id: SessionId
    user_id: UserId
    provider: str
    status: SessionStatus
    step: str | None
    oauth_url: str | None
    own_browser_url: str | None
    """For logging in in the person's own browser, and pasting what comes of it."""
    cli_vm_id: VmId | None
    error_code: str | None
    error: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    expires_at: datetime
    """When the person's time is over. Set anew, once, when the waiting begins."""
    ended_at: datetime | None
    method: CredentialKind = CredentialKind.LOGIN
    """How the person connects: a login in a browser machine, or a key, which needs none."""


@dataclass(frozen=True, slots=True)
class SessionStep:
    """A row of `session_steps`: when a session was in one step, and how that ended."""

    session_id: SessionId
    step: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    """`done`, `failed` or `undone`."""
