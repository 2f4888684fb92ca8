"""Connect sessions, and the steps of workflows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from polydev.shared.domain.credentials import CredentialKind
from polydev.shared.domain.ids import SessionId, UserId, VmId


class StepName(StrEnum):
    """A step of a workflow, with the label that users read.

    The values are stored, and part of the API: they stay as they are.
    """

    label: str

    def __new__(cls, value: str, label: str) -> Self:
        """Make a member from its name and its label."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.label = label
        return member

    WAIT_FOR_CAPACITY = "wait-for-room", "Waiting for a free machine"
    CREATE_MACHINES = "create-machines", "Starting your machines"
    CREATE_CLI_MACHINE = "create-cli-machine", "Starting your machine"
    BROWSER_READY = "browser-ready", "Opening a browser for you"
    START_LOGIN = "start-login", "Starting the login"
    WAIT_FOR_USER = "wait-for-person", "Log in"
    CAPTURE = "capture", "Encrypting the credentials"
    WRITE = "write", "Copying the credentials to your machine"
    DESTROY_BROWSER = "destroy-browser", "Deleting the browser machine"
    SETTLE = "settle", "Finishing"

    CANCEL_SESSIONS = "cancel-sessions", "Cancelling connect sessions"
    DESTROY_MACHINES = "destroy-machines", "Deleting machines"
    ERASE_USER = "erase-person", "Deleting the account"
    RESEAL = "reseal", "Encrypting everything with the new key"


LOGIN_STEPS = (
    StepName.WAIT_FOR_CAPACITY,
    StepName.CREATE_MACHINES,
    StepName.BROWSER_READY,
    StepName.START_LOGIN,
    StepName.WAIT_FOR_USER,
    StepName.CAPTURE,
    StepName.WRITE,
    StepName.DESTROY_BROWSER,
)
"""Steps of a session that logs in with a browser, in order."""

API_KEY_STEPS = (
    StepName.WAIT_FOR_CAPACITY,
    StepName.CREATE_CLI_MACHINE,
    StepName.WRITE,
    StepName.SETTLE,
)
"""Steps of a session that stores an API key, in order."""

UNDO_PREFIX = "undo "


def step_label(name: str) -> str:
    """Label of a step, or of the undoing of one. An unknown step is labelled by its name."""
    if name.startswith(UNDO_PREFIX):
        return f"Reverting: {step_label(name.removeprefix(UNDO_PREFIX))}"
    known = StepName.__members__.values()
    return next((it.label for it in known if it == name), name.replace("-", " ").capitalize())


class SessionStatus(StrEnum):
    """State of a connect session. The last four are final."""

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
    """Row of `auth_sessions`: one attempt to log one CLI in."""

    session_id: SessionId
    user_id: UserId
    provider: str
    status: SessionStatus
    step: str | None
    oauth_url: str | None
    own_browser_url: str | None
    """URL for a login in the user's own browser, whose result is pasted."""
    cli_vm_id: VmId | None
    error_code: str | None
    error: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    expires_at: datetime
    """Deadline for the user. It is set again, once, when the wait for the user starts."""
    ended_at: datetime | None
    method: CredentialKind = CredentialKind.LOGIN
    """Login in a browser machine, or an API key, which needs no browser machine."""


@dataclass(frozen=True, slots=True)
class SessionStep:
    """Row of `session_steps`: start, end and outcome of one step."""

    session_id: SessionId
    step: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    """`done`, `failed` or `undone`."""
