"""Schemas of connect sessions."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import Field, SecretStr, model_validator

from polydev.controller.api.http.path_params import IdText
from polydev.controller.api.schemas.base import (
    SESSION_ID,
    VM_ID,
    ErrorView,
    ProviderId,
    RequestModel,
    ResponseModel,
    VersionedModel,
    user_id_field,
)
from polydev.shared.domain import (
    ConnectSession,
    CredentialKind,
    Machine,
    SessionStatus,
    SessionStep,
)
from polydev.shared.providers import MAX_KEY_CHARACTERS, provider


class StartLogin(RequestModel):
    provider: ProviderId
    userId: IdText | None = user_id_field()


class HandInKey(RequestModel):
    """An API key in place of a login. Kept sealed, and nowhere else."""

    provider: ProviderId
    apiKey: SecretStr = Field(min_length=1, max_length=2 * MAX_KEY_CHARACTERS)
    userId: IdText | None = user_id_field()


class Paste(RequestModel):
    """What a person pasted: one of the two. Kept nowhere."""

    code: SecretStr | None = Field(None, max_length=8192)
    callbackUrl: SecretStr | None = Field(None, max_length=8192)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.code is None) == (self.callbackUrl is None):
            raise ValueError("give either code or callbackUrl")
        return self


class LoginStarted(ResponseModel):
    sessionId: str = Field(examples=[SESSION_ID])
    status: SessionStatus


class ViewTicket(ResponseModel):
    ticket: str = Field(description="Counts once", examples=["3q2-7w8kJf..."])
    expiresAt: datetime


class CliMachine(ResponseModel):
    vmId: str = Field(examples=[VM_ID])
    ipAddress: str | None = Field(examples=["192.168.100.5"])


class LoginCompleted(ResponseModel):
    success: bool = Field(examples=[True])
    sessionId: str = Field(examples=[SESSION_ID])
    cliVM: CliMachine


class StepView(ResponseModel):
    step: str = Field(examples=["wait-for-person"])
    startedAt: datetime
    endedAt: datetime | None
    seconds: float | None
    outcome: str | None = Field(examples=["done"])

    @classmethod
    def of(cls, step: SessionStep) -> StepView:
        ended = step.ended_at
        return cls(
            step=step.step,
            startedAt=step.started_at,
            endedAt=ended,
            seconds=(ended - step.started_at).total_seconds() if ended else None,
            outcome=step.outcome,
        )


class SessionView(VersionedModel):
    """A connect session. What it names is the CLI machine, never the browser machine."""

    sessionId: str = Field(examples=[SESSION_ID])
    provider: str = Field(examples=["codex"])
    method: CredentialKind = Field(description="A login in a browser machine, or an API key")
    status: SessionStatus
    step: str | None = Field(examples=["wait-for-person"])
    steps: list[StepView]
    oauthUrl: str | None = Field(
        description="Where the login is, in the live view's browser",
        examples=["https://auth.example/oauth/authorize?client_id=cli"],
    )
    ownBrowserUrl: str | None = Field(
        description="Where it can be done in one's own browser, pasting what comes of it"
    )
    accepts: str = Field(description="What may be pasted", examples=["callback-url"])
    ahead: int | None = Field(
        description="While it waits for room: how many sessions are before it", examples=[0]
    )
    cliVM: CliMachine | None
    error: ErrorView | None
    createdAt: datetime
    expiresAt: datetime
    endedAt: datetime | None

    @classmethod
    def of(
        cls,
        session: ConnectSession,
        steps: Sequence[SessionStep],
        cli: Machine | None,
        ahead: int | None = None,
    ) -> SessionView:
        return cls(
            sessionId=session.session_id,
            provider=session.provider,
            method=session.method,
            status=session.status,
            step=session.step,
            steps=[StepView.of(step) for step in steps],
            oauthUrl=session.oauth_url,
            ownBrowserUrl=session.own_browser_url,
            accepts=provider(session.provider).accepts,
            ahead=ahead,
            cliVM=CliMachine(vmId=cli.vm_id, ipAddress=cli.ip_address) if cli else None,
            error=ErrorView.of(session.error_code, session.error),
            createdAt=session.created_at,
            expiresAt=session.expires_at,
            endedAt=session.ended_at,
        ).with_version()


class SessionSummary(ResponseModel):
    """A connect session in a listing: without what leads into its login."""

    sessionId: str = Field(examples=[SESSION_ID])
    userId: str
    provider: str = Field(examples=["codex"])
    method: CredentialKind
    status: SessionStatus
    step: str | None = Field(examples=["wait-for-person"])
    cliVmId: str | None = Field(examples=[VM_ID])
    error: ErrorView | None
    createdAt: datetime
    expiresAt: datetime
    endedAt: datetime | None

    @classmethod
    def of(cls, session: ConnectSession) -> SessionSummary:
        return cls(
            sessionId=session.session_id,
            userId=session.user_id,
            provider=session.provider,
            method=session.method,
            status=session.status,
            step=session.step,
            cliVmId=session.cli_vm_id,
            error=ErrorView.of(session.error_code, session.error),
            createdAt=session.created_at,
            expiresAt=session.expires_at,
            endedAt=session.ended_at,
        )
