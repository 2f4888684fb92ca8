"""What goes over the API's wire, with the field names of SPEC section 5."""

# ruff: noqa: N815  (the names are the wire's)

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from polydev.controller.api.http.path_params import FreeText, IdText
from polydev.controller.chat import MAX_PROMPT_CHARACTERS
from polydev.shared.domain import (
    ConnectSession,
    CredentialKind,
    HostState,
    Machine,
    MachineKind,
    MachineState,
    SessionStatus,
    SessionStep,
    Sleep,
    VmHost,
    WokeHow,
)
from polydev.shared.providers import MAX_KEY_CHARACTERS, Provider, all_providers, provider

_VM_ID = "vm-5e3c5f0a-2f7b-4f0e-9c3d-6a1b2c3d4e5f"
_SESSION_ID = "0b1f6a52-8d1e-4f6d-9a55-3c1d0e7f2b11"
_USER_ID = Field(None, description="For whom, if an administrator asks; else oneself")

ProviderId = Annotated[
    str,
    Field(
        max_length=64,
        description="A CLI, as `/api/providers` lists them",
        json_schema_extra={"enum": [it.id for it in all_providers()]},
    ),
]


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _Request(_Response):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StartLogin(_Request):
    provider: ProviderId
    userId: IdText | None = _USER_ID


class HandInKey(_Request):
    """An API key in place of a login. Kept sealed, and nowhere else."""

    provider: ProviderId
    apiKey: SecretStr = Field(min_length=1, max_length=2 * MAX_KEY_CHARACTERS)
    userId: IdText | None = _USER_ID


class CreateMachine(_Request):
    vmType: MachineKind
    userId: IdText | None = _USER_ID


class DestroyMachine(_Request):
    vmId: IdText = Field(examples=[_VM_ID])


class Paste(_Request):
    """What a person pasted: one of the two. Kept nowhere."""

    code: SecretStr | None = Field(None, max_length=8192)
    callbackUrl: SecretStr | None = Field(None, max_length=8192)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.code is None) == (self.callbackUrl is None):
            raise ValueError("give either code or callbackUrl")
        return self


class ChatTurn(_Request):
    provider: ProviderId
    text: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, examples=["What is here?"])


class LoginStarted(_Response):
    sessionId: str = Field(examples=[_SESSION_ID])
    status: SessionStatus


class ViewTicket(_Response):
    ticket: str = Field(description="Counts once", examples=["3q2-7w8kJf..."])
    expiresAt: datetime


class CliMachine(_Response):
    vmId: str = Field(examples=[_VM_ID])
    ipAddress: str | None = Field(examples=["192.168.100.5"])


class ActiveCli(CliMachine):
    status: MachineState
    createdAt: datetime


class LoginCompleted(_Response):
    success: bool = Field(examples=[True])
    sessionId: str = Field(examples=[_SESSION_ID])
    cliVM: CliMachine


class ErrorView(_Response):
    code: str = Field(examples=["login-expired"])
    message: str = Field(examples=["Nobody logged in within the time allowed"])


class StepView(_Response):
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


class _Versioned(_Response):
    version: str = Field(
        default="",
        description="Changes whenever anything else here does",
        examples=["9f2c1d0b7a6e5f43"],
    )

    def with_version(self) -> Self:
        digest = hashlib.sha256(self.model_dump_json(exclude={"version"}).encode())
        return self.model_copy(update={"version": digest.hexdigest()[:16]})


class SessionView(_Versioned):
    """A connect session. What it names is the CLI machine, never the browser machine."""

    sessionId: str = Field(examples=[_SESSION_ID])
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
            error=_error(session.error_code, session.error),
            createdAt=session.created_at,
            expiresAt=session.expires_at,
            endedAt=session.ended_at,
        ).with_version()


class SessionSummary(_Response):
    """A connect session in a listing: without what leads into its login."""

    sessionId: str = Field(examples=[_SESSION_ID])
    userId: str
    provider: str = Field(examples=["codex"])
    method: CredentialKind
    status: SessionStatus
    step: str | None = Field(examples=["wait-for-person"])
    cliVmId: str | None = Field(examples=[_VM_ID])
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
            error=_error(session.error_code, session.error),
            createdAt=session.created_at,
            expiresAt=session.expires_at,
            endedAt=session.ended_at,
        )


class SleepView(_Response):
    """How a machine last went to sleep, and how it woke."""

    slept_at: datetime | None
    slept_why: str = Field(examples=["not used for 30 minutes"])
    trouble: str = Field(description="Why it could not be put to sleep, or woken, the last time")
    memory_on_disk_bytes: int | None = Field(
        description="While it sleeps, and until it has woken", examples=[104857600]
    )
    woke_at: datetime | None
    woke_why: str = Field(examples=["a message in a chat"])
    woke_how: WokeHow | None = Field(
        description="`resumed`, with everything in its memory; or `booted`, from its disk"
    )
    boot_reason: str = Field(description="Why its memory could not be used, if it was booted")
    took_seconds: float | None = Field(description="How long waking took", examples=[0.8])

    @classmethod
    def of(cls, sleep: Sleep) -> SleepView:
        return cls(
            slept_at=sleep.slept_at,
            slept_why=sleep.slept_why,
            trouble=sleep.trouble,
            memory_on_disk_bytes=sleep.memory_on_disk_bytes,
            woke_at=sleep.woke_at,
            woke_why=sleep.woke_why,
            woke_how=sleep.woke_how,
            boot_reason=sleep.boot_reason,
            took_seconds=sleep.took_s,
        )


class MachineView(_Versioned):
    """A machine."""

    vm_id: str = Field(examples=[_VM_ID])
    vm_type: MachineKind
    ip_address: str | None = Field(examples=["192.168.100.5"])
    status: MachineState
    created_at: datetime
    memory_mib: int = Field(examples=[1024])
    vcpus: int = Field(examples=[1])
    disk_mib: int = Field(examples=[4096])
    error: ErrorView | None
    sleep: SleepView | None = Field(description="null: it never slept, nor was to")

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
            sleep=None if machine.sleep == Sleep() else SleepView.of(machine.sleep),
        ).with_version()


class PlacedMachine(MachineView):
    """A machine as administrators see it: whose it is, and where."""

    user_id: str
    host_id: str | None = Field(examples=["local"])
    session_id: str | None = Field(description="The connect session that made it")

    @classmethod
    def of(cls, machine: Machine) -> PlacedMachine:
        return cls(
            **dict(MachineView.of(machine)),
            user_id=machine.user_id,
            host_id=machine.host_id,
            session_id=machine.session_id,
        )


class HostView(_Response):
    """A VM host."""

    hostId: str = Field(examples=["local"])
    state: HostState
    memoryMib: int = Field(description="What its machines may have together", examples=[16384])
    vcpus: int = Field(examples=[16])
    memoryTakenMib: int = Field(description="What its machines have", examples=[1024])
    vcpusTaken: int = Field(examples=[1])
    machines: int = Field(examples=[1])
    driver: str = Field(examples=["qemu"])
    accelerator: str = Field(examples=["kvm"])
    version: str
    seenAt: datetime | None = Field(description="When it last answered; null: never")

    @classmethod
    def of(cls, host: VmHost, taken: tuple[int, int, int]) -> HostView:
        """`taken`: memory in MiB, virtual processors and machines."""
        memory_mib, vcpus, machines = taken
        return cls(
            hostId=host.host_id,
            state=host.state,
            memoryMib=host.memory_mib,
            vcpus=host.vcpus,
            memoryTakenMib=memory_mib,
            vcpusTaken=vcpus,
            machines=machines,
            driver=host.driver,
            accelerator=host.accelerator,
            version=host.version,
            seenAt=host.seen_at,
        )


class Reason(_Request):
    """Why an administrator does it; kept in the audit log."""

    reason: FreeText = Field(min_length=1, examples=["It mines coins"])


class Accepted(_Response):
    accepted: bool = True


class ApiKeyView(_Response):
    url: str = Field(
        description="Where the provider hands keys out",
        examples=["https://platform.openai.com/api-keys"],
    )
    example: str = Field(description="What one looks like", examples=["sk-proj-..."])


class ProviderView(_Response):
    id: str = Field(examples=["codex"])
    name: str = Field(examples=["Codex"])
    accepts: str = Field(description="What a person may paste in a login")
    apiKey: ApiKeyView = Field(description="What to know of connecting with an API key")

    @classmethod
    def of(cls, one: Provider) -> ProviderView:
        key = ApiKeyView(url=one.api_key.url, example=one.api_key.example)
        return cls(id=one.id, name=one.name, accepts=one.accepts, apiKey=key)


class HealthView(_Response):
    status: str = Field(description="`ok`, or `degraded` if a check fails")
    version: str
    checks: dict[str, bool]


def _error(code: str | None, message: str | None) -> ErrorView | None:
    return None if code is None else ErrorView(code=code, message=message or code)
