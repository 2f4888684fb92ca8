"""New records of a user, for tests of the queries."""

from __future__ import annotations

import uuid
from datetime import timedelta

from owned_rows import ANN

from polydev.shared.domain import (
    Chat,
    ChatId,
    ChatStatus,
    ConnectSession,
    CredentialId,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    SealedCredential,
    SessionId,
    SessionStatus,
    TitledBy,
    UserId,
    new_vm_id,
    now,
)


def new_session(user: UserId = ANN, provider: str = "codex") -> ConnectSession:
    return ConnectSession(
        session_id=SessionId(str(uuid.uuid4())),
        user_id=user,
        provider=provider,
        status=SessionStatus.QUEUED,
        step=None,
        oauth_url=None,
        own_browser_url=None,
        cli_vm_id=None,
        error_code=None,
        error=None,
        cancel_requested_at=None,
        created_at=now(),
        expires_at=now() + timedelta(minutes=15),
        ended_at=None,
    )


def new_machine(user: UserId = ANN, kind: MachineKind = MachineKind.CLI) -> Machine:
    return Machine(
        vm_id=new_vm_id(),
        user_id=user,
        vm_type=kind,
        status=MachineState.CREATING,
        ip_address=None,
        session_id=None,
        host_id=None,
        size=MachineSize(512, 1, 4096),
        error_code=None,
        error=None,
        created_at=now(),
    )


def new_credential(user: UserId = ANN, provider: str = "codex") -> SealedCredential:
    return SealedCredential(
        credential_id=CredentialId(str(uuid.uuid4())),
        user_id=user,
        provider=provider,
        encrypted_credentials="AA==",
        encryption_iv="AA==",
        encryption_tag="AA==",
        encryption_salt="AA==",
        key_id="key-1",
        created_at=now(),
    )


def new_chat(chat_id: ChatId, user: UserId = ANN) -> Chat:
    at = now()
    return Chat(
        chat_id=chat_id,
        user_id=user,
        provider="codex",
        title="",
        titled_by=TitledBy.UNTITLED,
        vm_id=None,
        acp_session_id=None,
        turn=0,
        status=ChatStatus.IDLE,
        executor_id=None,
        created_at=at,
        updated_at=at,
    )
