"""Users, their sign-ins, tokens and scopes, and the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.ids import UserId


class Role(StrEnum):
    """Role of a user."""

    USER = "person"
    ADMINISTRATOR = "administrator"


class Scope(StrEnum):
    """Permission of a token. A sign-in has all scopes of its user's role."""

    READ = "read"
    """View one's own resources."""
    CONNECT = "connect"
    """Start, cancel and complete connect sessions; revoke and export credentials."""
    MACHINES = "machines"
    """Create, start, stop and destroy machines; run programs in them."""
    CHAT = "chat"
    """Chat with CLIs."""
    ACCOUNT = "account"
    """Change the password, create tokens, delete the account."""
    ADMIN = "admin"
    """Manage hosts, users and all machines. Administrators only."""


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    user_id: UserId
    email: str
    created_at: datetime
    role: Role = Role.USER
    disabled_at: datetime | None = None
    deleting_at: datetime | None = None
    """Start of the account's deletion."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """Row of `api_tokens`, without the token's hash."""

    token_id: str
    user_id: UserId
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class SignIn:
    """Row of `sign_ins`: a signed-in browser, without its secret's hash."""

    sign_in_id: str
    user_id: UserId
    source: str
    """Network address of the browser."""
    user_agent: str
    """The browser's `User-Agent`."""
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """Row of `invitations`: permission for one sign-up, without its code's hash."""

    invitation_id: str
    email: str | None
    """The only e-mail address that may use it. None: any."""
    role: Role
    created_by: UserId
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: UserId | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Row of `audit_log`. It contains no secrets."""

    actor: str
    """A user id, or `controller`."""
    action: str
    """`<subject>.<verb>`: `machine.destroy`, `session.start`, `token.create`, ..."""
    subject: str
    """Id of the changed resource."""
    owner: UserId | None = None
    """Owner of the resource. None: it has no owner."""
    via: str = ""
    """`sign-in`, `token:<token id>`, `local`, `reconciler`, ..."""
    source: str = ""
    """Network address of the request."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Row of `events`: a change of a user's resource. The API gives the new state."""

    event_id: int
    user_id: UserId
    kind: str
    """`session`, `machine`, `credential`, `token`, ..."""
    subject: str
    data: dict[str, str]
    """A few fields (`status`, `step`), never a secret."""
    at: datetime
