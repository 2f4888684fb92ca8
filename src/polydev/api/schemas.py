"""What goes over the API's wire, with the field names of SPEC section 5."""

# ruff: noqa: N815  (the names are the wire's)

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from polydev.domain import (
    ConnectSession,
    Machine,
    MachineKind,
    MachineState,
    SessionStatus,
    SessionStep,
)
from polydev.providers import provider


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _Question(_Schema):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StartLogin(_Question):
    provider: str = Field(max_length=64)
    userId: str | None = Field(None, max_length=128)


class CreateMachine(_Question):
    vmType: MachineKind
    userId: str | None = Field(None, max_length=128)


class DestroyMachine(_Question):
    vmId: str = Field(max_length=64)


class Paste(_Question):
    """What a person pasted: one of the two. Kept nowhere."""

    code: SecretStr | None = Field(None, max_length=8192)
    callbackUrl: SecretStr | None = Field(None, max_length=8192)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.code is None) == (self.callbackUrl is None):
            raise ValueError("give either code or callbackUrl")
        return self


class ChatTurn(_Question):
    provider: str = Field(max_length=64)
    text: str = Field(max_length=64 * 1024)


class LoginStarted(_Schema):
    sessionId: str
    status: SessionStatus


class CliMachine(_Schema):
    vmId: str
    ipAddress: str | None


class ActiveCli(CliMachine):
    status: MachineState
    createdAt: datetime


class LoginCompleted(_Schema):
    success: bool
    sessionId: str
    cliVM: CliMachine


class ErrorView(_Schema):
    code: str
    message: str


class StepView(_Schema):
    step: str
    startedAt: datetime
    endedAt: datetime | None
    seconds: float | None
    outcome: str | None

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


class _Versioned(_Schema):
    version: str = ""
    """Changes whenever anything else here does."""

    def with_version(self) -> Self:
        digest = hashlib.sha256(self.model_dump_json(exclude={"version"}).encode())
        return self.model_copy(update={"version": digest.hexdigest()[:16]})


class SessionView(_Versioned):
    sessionId: str
    provider: str
    status: SessionStatus
    step: str | None
    steps: list[StepView]
    oauthUrl: str | None
    ownBrowserUrl: str | None
    accepts: str
    cliVM: CliMachine | None
    error: ErrorView | None
    createdAt: datetime
    expiresAt: datetime
    endedAt: datetime | None

    @classmethod
    def of(
        cls, session: ConnectSession, steps: Sequence[SessionStep], cli: Machine | None
    ) -> SessionView:
        return cls(
            sessionId=session.session_id,
            provider=session.provider,
            status=session.status,
            step=session.step,
            steps=[StepView.of(step) for step in steps],
            oauthUrl=session.oauth_url,
            ownBrowserUrl=session.own_browser_url,
            accepts=provider(session.provider).accepts,
            cliVM=CliMachine(vmId=cli.vm_id, ipAddress=cli.ip_address) if cli else None,
            error=_error(session.error_code, session.error),
            createdAt=session.created_at,
            expiresAt=session.expires_at,
            endedAt=session.ended_at,
        ).with_version()


class MachineView(_Versioned):
    vm_id: str
    vm_type: MachineKind
    ip_address: str | None
    status: MachineState
    created_at: datetime
    memory_mib: int
    vcpus: int
    disk_mib: int
    error: ErrorView | None

    @classmethod
    def of(cls, machine: Machine) -> MachineView:
        return cls(
            vm_id=machine.vm_id,
            vm_type=machine.vm_type,
            ip_address=machine.ip_address,
            status=machine.status,
            created_at=machine.created_at,
            memory_mib=machine.size.memory_mib,
            vcpus=machine.size.vcpus,
            disk_mib=machine.size.disk_mib,
            error=_error(machine.error_code, machine.error),
        ).with_version()


class Accepted(_Schema):
    accepted: bool = True


class ProviderView(_Schema):
    id: str
    name: str
    accepts: str


class HealthView(_Schema):
    status: str
    version: str
    checks: dict[str, bool]


class CheckView(_Schema):
    name: str
    ok: bool
    message: str
    hint: str = ""


class DoctorView(_Schema):
    checks: list[CheckView]


def _error(code: str | None, message: str | None) -> ErrorView | None:
    return None if code is None else ErrorView(code=code, message=message or code)
