"""The words of Polydev as types: ids, states and the records that rows become.

Everything may import this module; it imports nothing of Polydev.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import NewType

VmId = NewType("VmId", str)
"""`vm-<uuid>`: names a machine everywhere, on disk too."""

SessionId = NewType("SessionId", str)
"""A UUID: names a connect session, and the workflow that drives it."""

PersonId = NewType("PersonId", str)
CredentialId = NewType("CredentialId", str)
HostId = NewType("HostId", str)
"""Names a VM host: `local` for the one beside the controller."""
LOCAL_HOST = HostId("local")

_NAMESPACE = uuid.UUID("6f1d7a52-5a0e-4c39-9a54-3b1f0f6f2a11")


class MachineKind(StrEnum):
    """What a machine is for."""

    CLI = "cli"
    BROWSER = "browser"


class MachineState(StrEnum):
    """Where a machine is in its life (SPEC section 3)."""

    CREATING = "creating"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    RESUMING = "resuming"
    """On its way back to running."""
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"

    @property
    def holds_memory(self) -> bool:
        """Whether its host's memory and processors are taken, or will be in a moment."""
        return self not in _AT_REST


_AT_REST = frozenset({MachineState.STOPPED, MachineState.FAILED, MachineState.DESTROYED})


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


class Role(StrEnum):
    """What somebody is on this Polydev."""

    PERSON = "person"
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
class Person:
    """Somebody who may sign in."""

    user_id: PersonId
    email: str
    created_at: datetime
    role: Role = Role.PERSON
    disabled_at: datetime | None = None
    deleting_at: datetime | None = None
    """Since when everything of theirs is being removed."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A row of `api_tokens`: what is known of a token besides its hash."""

    token_id: str
    user_id: PersonId
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class SignIn:
    """A row of `sign_ins`: a browser in which somebody is signed in, without its secret's hash."""

    sign_in_id: str
    user_id: PersonId
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
    created_by: PersonId
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: PersonId | None = None


class HostState(StrEnum):
    """Whether a host takes machines."""

    ACTIVE = "active"
    DRAINING = "draining"
    """Keeps its machines and takes no new ones."""


@dataclass(frozen=True, slots=True)
class VmHost:
    """A row of `hosts`: a machine that runs a host agent, and what it offers."""

    host_id: HostId
    socket: str
    """Path of the host agent's Unix socket."""
    state: HostState
    memory_mib: int
    """What its machines may have together."""
    vcpus: int
    """Virtual processors that its machines may have together."""
    max_machines: int
    """How many machines it has addresses for."""
    disk_free_mib: int
    driver: str
    accelerator: str
    version: str
    seen_at: datetime | None
    """When it last answered; None: it never did, and nothing is placed there."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row of `audit_log`: who did what to which, from where, and why. Never a secret."""

    actor: str
    """A person's id, or `controller`."""
    action: str
    """`<subject>.<verb>`: `machine.destroy`, `session.start`, `token.create`, ..."""
    subject: str
    """The id of what it was done to."""
    owner: PersonId | None = None
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
    user_id: PersonId
    kind: str
    """`session`, `machine`, `credential`, `token`, ..."""
    subject: str
    data: dict[str, str]
    """A few words (`status`, `step`), never a secret."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `polydev doctor`: something that was looked at, and how it is."""

    name: str
    """What was looked at: `database`, `bridge`, `orphans`, ..."""
    ok: bool | None
    """None: it could not be looked at; the message says why."""
    message: str
    hint: str = ""
    """What to do, when it is not ok."""
    vm_id: str | None = None
    """The machine that it is about, if it is about one."""
    host_id: str | None = None
    """The VM host that said it, if one did."""


@dataclass(frozen=True, slots=True)
class MachineSize:
    """What a machine is made with."""

    memory_mib: int
    vcpus: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of what is limited a person uses, or may use."""

    machines: int
    memory_mib: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A row of `vms`: what the controller knows of a machine."""

    vm_id: VmId
    user_id: PersonId
    vm_type: MachineKind
    status: MachineState
    ip_address: str | None
    session_id: SessionId | None
    """The connect session that created it, if one did."""
    host_id: HostId | None
    """Where it was placed; None: nowhere yet."""
    size: MachineSize
    error_code: str | None
    error: str | None
    created_at: datetime
    attempt: int = 0
    """How often it was asked to stop or start, or to be made anew: names what does it."""


@dataclass(frozen=True, slots=True)
class ConnectSession:
    """A row of `auth_sessions`: one attempt to log one CLI in."""

    session_id: SessionId
    user_id: PersonId
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


@dataclass(frozen=True, slots=True)
class SessionStep:
    """A row of `session_steps`: when a session was in one step, and how that ended."""

    session_id: SessionId
    step: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    """`done`, `failed` or `undone`."""


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """A row of `credentials`: ciphertext, IV, tag and salt as base64 (SPEC section 6).

    `key_id` is None for rows that an earlier Node.js controller wrote; those carry no
    additional authenticated data either.
    """

    credential_id: CredentialId
    user_id: PersonId
    provider: str
    encrypted_credentials: str
    encryption_iv: str
    encryption_tag: str
    encryption_salt: str
    key_id: str | None
    created_at: datetime


class Validity(StrEnum):
    """What a CLI last said of a credential."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a row of `credentials` says besides what is sealed."""

    credential_id: CredentialId
    user_id: PersonId
    provider: str
    key_id: str | None
    created_at: datetime
    vm_id: VmId | None
    """The CLI machine that it was written into last."""
    expires_at: datetime | None
    """When the login ends, if it tells."""
    checked_at: datetime | None
    validity: Validity | None
    revoked_at: datetime | None
    """Since when it is being removed: what was sealed is gone already."""


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """A row of `shared_secrets`: something that all controllers know, sealed like credentials."""

    name: str
    sealed: str
    iv: str
    tag: str
    salt: str
    key_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How much one key seals."""

    credentials: int
    secrets: int


@dataclass(frozen=True, slots=True)
class VaultKey:
    """A row of `vault_keys`: a key that sealed credentials, and a canary to try a key on."""

    key_id: str
    canary: str
    canary_iv: str
    canary_tag: str
    canary_salt: str
    created_at: datetime


@dataclass(frozen=True, slots=True, repr=False)
class GuestFile:
    """A file to be put into a machine. `content` may be secret, so it has no repr."""

    path: str
    content: bytes
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"GuestFile({self.path!r}, {len(self.content)} bytes, {self.mode:#o})"


def now() -> datetime:
    """The time, in UTC: every timestamp in rows and answers."""
    return datetime.now(UTC)


def new_vm_id() -> VmId:
    """A fresh machine id."""
    return VmId(f"vm-{uuid.uuid4()}")


def vm_id_for(session_id: SessionId, kind: MachineKind) -> VmId:
    """The machine id that a session's machine of one kind has, the same every time it is asked.

    A workflow step that runs twice therefore asks the host for the same machine twice.
    """
    return VmId(f"vm-{uuid.uuid5(_NAMESPACE, f'{session_id}/{kind}')}")


def credential_id_for(session_id: SessionId) -> CredentialId:
    """The id of the credential that a session captures, the same every time it is asked."""
    return CredentialId(str(uuid.uuid5(_NAMESPACE, f"{session_id}/credential")))
