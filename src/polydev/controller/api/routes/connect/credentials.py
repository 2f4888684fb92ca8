"""Routes `/api/credentials`: what CLIs are logged in with.

Only `export` returns a secret.
"""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.concurrency_limits import CHECKS
from polydev.controller.api.http.openapi_responses import paged_response, problem_responses
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import ConnectCaller, ReadCaller, ServicesDep
from polydev.controller.store.queries.connect import credentials
from polydev.controller.workflows.credentials.credential_lifecycle import Verdict
from polydev.shared.domain import Credential, CredentialId, CredentialKind, Validity
from polydev.shared.errors import (
    CredentialDamaged,
    NoSuchCredential,
    TooManyRequests,
    WrongEncryptionKey,
)

router = routers.router(prefix="/api/credentials", tags=["credentials"])

_ID = "7d4a8f1e-2c63-5b0a-9d11-4e8f0c2b6a35"


class CredentialView(BaseModel):
    """A credential, without its secret."""

    model_config = ConfigDict(frozen=True)

    credentialId: str = Field(examples=[_ID])
    provider: str = Field(examples=["codex"])
    kind: CredentialKind = Field(description="From a login, or an API key")
    createdAt: datetime
    keyId: str | None = Field(description="Id of the encryption key")
    vmId: str | None = Field(description="The CLI machine that holds it")
    expiresAt: datetime | None = Field(description="When the login expires, if known")
    checkedAt: datetime | None = Field(description="When its CLI last checked it")
    validity: Validity | None = Field(description="Result of that check")
    revoking: bool = Field(description="It is being revoked; its secret is already erased")

    @classmethod
    def of(cls, credential: Credential) -> CredentialView:
        return cls(
            credentialId=credential.credential_id,
            provider=credential.provider,
            kind=credential.kind,
            createdAt=credential.created_at,
            keyId=credential.key_id,
            vmId=credential.vm_id,
            expiresAt=credential.expires_at,
            checkedAt=credential.checked_at,
            validity=credential.validity,
            revoking=credential.revoked_at is not None,
        )


class VerdictView(BaseModel):
    """Result of a check by the CLI."""

    model_config = ConfigDict(frozen=True)

    validity: Validity
    reason: str = Field(examples=["Codex says that it is logged in"])
    refreshed: bool = Field(description="The CLI had refreshed its tokens; the new ones are stored")

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictView:
        return cls(validity=verdict.validity, reason=verdict.reason, refreshed=verdict.refreshed)


class ExportView(BaseModel):
    """A credential in clear text: anyone who has it is logged in."""

    model_config = ConfigDict(frozen=True)

    provider: str = Field(examples=["codex"])
    kind: CredentialKind
    path: str = Field(
        examples=["/root/.codex/auth.json"], description="Path of the CLI's file in its machine"
    )
    credentials: dict[str, Any] = Field(
        examples=[{"tokens": {"access_token": "..."}}],
        description="Content of the file; for an API key: `apiKey`",
    )


@router.get("", responses=problem_responses() | paged_response())
async def list_credentials(
    caller: ReadCaller, services: ServicesDep, paged: PageParams
) -> list[CredentialView]:
    """List your credentials, newest first."""
    async with services.database.read(caller.user_id) as connection:
        rows = await credentials.list_for_user(
            connection, caller.user_id, paged.page_spec(datetime, str)
        )
    page = paged.trim(rows, lambda it: (it.created_at, it.credential_id))
    return [CredentialView.of(row) for row in page]


@router.post(
    "/{credential_id}/validate", responses=problem_responses(NoSuchCredential, TooManyRequests)
)
async def validate_credential(
    credential_id: IdInPath, caller: ConnectCaller, services: ServicesDep
) -> VerdictView:
    """Check with the CLI that it is logged in.

    Store tokens that it has refreshed.
    """
    with CHECKS.acquire(caller):
        verdict = await services.credential_lifecycle.validate(caller, CredentialId(credential_id))
    return VerdictView.of(verdict)


@router.post(
    "/{credential_id}/revoke", status_code=202, responses=problem_responses(NoSuchCredential)
)
async def revoke_credential(
    credential_id: IdInPath, caller: ConnectCaller, services: ServicesDep
) -> CredentialView:
    """Revoke a credential: immediately here, then in the CLI machine."""
    return CredentialView.of(
        await services.credential_lifecycle.revoke(caller, CredentialId(credential_id))
    )


@router.post(
    "/{credential_id}/export",
    responses=problem_responses(NoSuchCredential, CredentialDamaged, WrongEncryptionKey),
)
async def export_credential(
    credential_id: IdInPath, caller: ConnectCaller, services: ServicesDep, response: Response
) -> ExportView:
    """Return the credential in clear text to its owner."""
    found, kind, plaintext = await services.credential_lifecycle.export(
        caller, CredentialId(credential_id)
    )
    response.headers["Cache-Control"] = "no-store"
    return ExportView(
        provider=found.id,
        kind=kind,
        path=found.credential_path(kind),
        credentials=json.loads(plaintext),
    )
