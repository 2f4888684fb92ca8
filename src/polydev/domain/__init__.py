"""The words of Polydev as types: ids, states and the records that rows become.

Everything may import this package; it imports nothing of Polydev.
"""

from polydev.domain.credentials import (
    Credential,
    KeyUse,
    SealedCredential,
    SharedSecret,
    Validity,
    VaultKey,
)
from polydev.domain.ids import (
    LOCAL_HOST,
    CredentialId,
    HostId,
    PersonId,
    SessionId,
    VmId,
    credential_id_for,
    new_vm_id,
    now,
)
from polydev.domain.machines import (
    Finding,
    GuestFile,
    HostState,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    Usage,
    VmHost,
    vm_id_for,
)
from polydev.domain.people import (
    ApiToken,
    AuditEntry,
    Event,
    Invitation,
    Person,
    Role,
    Scope,
    SignIn,
)
from polydev.domain.sessions import ConnectSession, SessionStatus, SessionStep

__all__ = [
    "LOCAL_HOST",
    "ApiToken",
    "AuditEntry",
    "ConnectSession",
    "Credential",
    "CredentialId",
    "Event",
    "Finding",
    "GuestFile",
    "HostId",
    "HostState",
    "Invitation",
    "KeyUse",
    "Machine",
    "MachineKind",
    "MachineSize",
    "MachineState",
    "Person",
    "PersonId",
    "Role",
    "Scope",
    "SealedCredential",
    "SessionId",
    "SessionStatus",
    "SessionStep",
    "SharedSecret",
    "SignIn",
    "Usage",
    "Validity",
    "VaultKey",
    "VmHost",
    "VmId",
    "credential_id_for",
    "new_vm_id",
    "now",
    "vm_id_for",
]
