"""What things are called, and the time. Ids of what a session makes are made from its own."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import NewType

VmId = NewType("VmId", str)
"""`vm-<uuid>`: names a machine everywhere, on disk too."""

SessionId = NewType("SessionId", str)
"""A UUID: names a connect session, and the workflow that drives it."""

UserId = NewType("UserId", str)

CredentialId = NewType("CredentialId", str)

ChatId = NewType("ChatId", str)

HostId = NewType("HostId", str)
"""Names a VM host: `local` for the one beside the controller."""

LOCAL_HOST = HostId("local")

NAMESPACE = uuid.UUID("6f1d7a52-5a0e-4c39-9a54-3b1f0f6f2a11")


def now() -> datetime:
    """The time, in UTC: every timestamp in rows and answers."""
    return datetime.now(UTC)


def new_vm_id() -> VmId:
    """A fresh machine id."""
    return VmId(f"vm-{uuid.uuid4()}")


def credential_id_for(session_id: SessionId) -> CredentialId:
    """The id of the credential that a session captures, the same every time it is asked."""
    return CredentialId(str(uuid.uuid5(NAMESPACE, f"{session_id}/credential")))
