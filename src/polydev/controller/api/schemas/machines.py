"""Schemas of machines."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from polydev.controller.api.http.path_params import IdText
from polydev.controller.api.schemas.base import (
    VM_ID,
    ErrorView,
    RequestModel,
    ResponseModel,
    VersionedModel,
    user_id_field,
)
from polydev.controller.api.schemas.connect import CliMachine
from polydev.shared.domain import Hibernation, Machine, MachineKind, MachineState, WokeHow


class CreateMachine(RequestModel):
    vmType: MachineKind
    userId: IdText | None = user_id_field()


class DestroyMachine(RequestModel):
    vmId: IdText = Field(examples=[VM_ID])


class ActiveCli(CliMachine):
    status: MachineState
    createdAt: datetime


class SleepView(ResponseModel):
    """The last hibernation of a machine, and how it resumed."""

    slept_at: datetime | None
    slept_why: str = Field(examples=["not used for 30 minutes"])
    trouble: str = Field(
        description="Why the last hibernation or resume failed; empty if it did not"
    )
    memory_on_disk_bytes: int | None = Field(
        description="Size of its saved memory while it is hibernated or resuming",
        examples=[104857600],
    )
    woke_at: datetime | None
    woke_why: str = Field(examples=["a message in a chat"])
    woke_how: WokeHow | None = Field(
        description="`resumed` from its saved memory, or `booted` from its disk"
    )
    boot_reason: str = Field(description="Why its saved memory could not be used, if it was booted")
    took_seconds: float | None = Field(description="Duration of the resume", examples=[0.8])

    @classmethod
    def of(cls, hibernation: Hibernation) -> SleepView:
        return cls(
            slept_at=hibernation.hibernated_at,
            slept_why=hibernation.hibernate_reason,
            trouble=hibernation.problem,
            memory_on_disk_bytes=hibernation.memory_on_disk_bytes,
            woke_at=hibernation.resumed_at,
            woke_why=hibernation.resume_reason,
            woke_how=hibernation.resumed_how,
            boot_reason=hibernation.boot_reason,
            took_seconds=hibernation.resume_took_s,
        )


class MachineView(VersionedModel):
    """A machine."""

    vm_id: str = Field(examples=[VM_ID])
    vm_type: MachineKind
    ip_address: str | None = Field(examples=["192.168.100.5"])
    status: MachineState
    created_at: datetime
    memory_mib: int = Field(examples=[1024])
    vcpus: int = Field(examples=[1])
    disk_mib: int = Field(examples=[4096])
    error: ErrorView | None
    sleep: SleepView | None = Field(description="null: it never hibernated")

    @classmethod
    def of(cls, machine: Machine) -> MachineView:
        past = machine.hibernation
        return cls(
            vm_id=machine.vm_id,
            vm_type=machine.vm_type,
            ip_address=machine.ip_address,
            status=machine.status,
            created_at=machine.created_at,
            **machine.size.fields(),
            error=ErrorView.of(machine.error_code, machine.error),
            sleep=SleepView.of(past) if past != Hibernation() else None,
        ).with_version()


class PlacedMachine(MachineView):
    """A machine with its owner and host, for administrators."""

    user_id: str
    host_id: str | None = Field(examples=["local"])
    session_id: str | None = Field(description="The connect session that created it")

    @classmethod
    def of(cls, machine: Machine) -> PlacedMachine:
        return cls(
            **dict(MachineView.of(machine)),
            user_id=machine.user_id,
            host_id=machine.host_id,
            session_id=machine.session_id,
        )
