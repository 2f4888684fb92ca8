"""Ids and timestamps. Ids of a session's resources are derived from the session id."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import NewType

VmId = NewType("VmId", str)
"""`vm-<uuid>`: id of a machine everywhere, also on disk."""

SessionId = NewType("SessionId", str)
"""UUID of a connect session and of its workflow."""

UserId = NewType("UserId", str)

CredentialId = NewType("CredentialId", str)

ChatId = NewType("ChatId", str)

HostId = NewType("HostId", str)
"""Name of a VM host. `local` is the host beside the controller."""

LOCAL_HOST = HostId("local")

NAMESPACE = uuid.UUID("6f1d7a52-5a0e-4c39-9a54-3b1f0f6f2a11")


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def new_vm_id() -> VmId:
    """Return a new random machine id."""
    return VmId(f"vm-{uuid.uuid4()}")


def credential_id_for(session_id: SessionId) -> CredentialId:
    """Derive the id of a session's credential."""
    return CredentialId(str(uuid.uuid5(NAMESPACE, f"{session_id}/credential")))
