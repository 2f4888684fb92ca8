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
    """An API key instead of a login. It is stored sealed only."""

    provider: ProviderId
    apiKey: SecretStr = Field(min_length=1, max_length=2 * MAX_KEY_CHARACTERS)
    userId: IdText | None = user_id_field()


class Paste(RequestModel):
    """A code or callback URL that the user pasted: exactly one.

    It is not stored.
    """

    code: SecretStr | None = Field(None, max_length=8192)
    callbackUrl: SecretStr | None = Field(None, max_length=8192)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.code is None) == (self.callbackUrl is None):
            raise ValueError("give exactly one of code and callbackUrl")
        return self


class LoginStarted(ResponseModel):
    sessionId: str = Field(examples=[SESSION_ID])
    status: SessionStatus


class ViewTicket(ResponseModel):
    ticket: str = Field(description="Valid once", examples=["3q2-7w8kJf..."])
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
    """A connect session.

    `cliVM` is the CLI machine; the browser machine is never named.
    """

    sessionId: str = Field(examples=[SESSION_ID])
    provider: str = Field(examples=["codex"])
    method: CredentialKind = Field(description="Login in a browser machine, or API key")
    status: SessionStatus
    step: str | None = Field(examples=["wait-for-person"])
    steps: list[StepView]
    oauthUrl: str | None = Field(
        description="URL of the login page that is open in the live view's browser",
        examples=["https://auth.example/oauth/authorize?client_id=cli"],
    )
    ownBrowserUrl: str | None = Field(
        description="URL to log in with your own browser; paste the resulting code or URL"
    )
    accepts: str = Field(description="What can be pasted", examples=["callback-url"])
    ahead: int | None = Field(
        description="Number of sessions ahead in the queue; null if it is not queued", examples=[0]
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
    """A connect session in a list, without its login URLs."""

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
