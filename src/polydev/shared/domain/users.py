"""People, how they prove who they are, what they may, and what is told of what they did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.ids import UserId


class Role(StrEnum):
    """What somebody is on this Polydev."""

    USER = "person"
    ADMINISTRATOR = "administrator"


class Scope(StrEnum):
    """What a request may be about. A sign-in has all that its person's role allows."""

    READ = "read"
    """Look at what is one's own."""
    CONNECT = "connect"
    """Start, cancel and complete connect sessions; revoke and export credentials."""
    MACHINES = "machines"
    """Create, start, stop and destroy machines; run programs in them."""
    CHAT = "chat"
    """Talk to CLIs."""
    ACCOUNT = "account"
    """Password, tokens, deletion of the account."""
    ADMIN = "admin"
    """Hosts, people and everybody's machines; administrators only."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may sign in."""

    user_id: UserId
    email: str
    created_at: datetime
    role: Role = Role.USER
    disabled_at: datetime | None = None
    deleting_at: datetime | None = None
    """Since when everything of theirs is being removed."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A row of `api_tokens`: what is known of a token besides its hash."""

    token_id: str
    user_id: UserId
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class SignIn:
    """A row of `sign_ins`: a browser in which somebody is signed in, without its secret's hash."""

    sign_in_id: str
    user_id: UserId
    source: str
    """The network address that signed in."""
    user_agent: str
    """What the browser called itself."""
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """A row of `invitations`: who may sign up, once, without its code's hash."""

    invitation_id: str
    email: str | None
    """The only address that it is for; None: whoever has the code."""
    role: Role
    created_by: UserId
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: UserId | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row of `audit_log`: who did what to which, from where, and why. Never a secret."""

    actor: str
    """A person's id, or `controller`."""
    action: str
    """`<subject>.<verb>`: `machine.destroy`, `session.start`, `token.create`, ..."""
    subject: str
    """The id of what it was done to."""
    owner: UserId | None = None
    """Whose it is; None for what is nobody's."""
    via: str = ""
    """`sign-in`, `token:<token id>`, `local`, `reconciler`, ..."""
    source: str = ""
    """The network address that asked."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`: something of a person's changed. What it is now, the API tells."""

    event_id: int
    user_id: UserId
    kind: str
    """`session`, `machine`, `credential`, `token`, ..."""
    subject: str
    data: dict[str, str]
    """A few words (`status`, `step`), never a secret."""
    at: datetime
