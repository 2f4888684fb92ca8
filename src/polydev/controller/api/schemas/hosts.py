"""Schemas of VM hosts and of administrators' actions."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from polydev.controller.api.http.path_params import FreeText
from polydev.controller.api.schemas.base import RequestModel, ResponseModel
from polydev.shared.domain import HostState, Resources, VmHost


class HostView(ResponseModel):
    """A VM host."""

    hostId: str = Field(examples=["local"])
    state: HostState
    memoryMib: int = Field(description="Memory for all machines together", examples=[16384])
    vcpus: int = Field(examples=[16])
    memoryTakenMib: int = Field(description="Memory that its machines use", examples=[1024])
    vcpusTaken: int = Field(examples=[1])
    machines: int = Field(examples=[1])
    driver: str = Field(examples=["qemu"])
    accelerator: str = Field(examples=["kvm"])
    version: str
    seenAt: datetime | None = Field(description="Last answer; null: never")

    @classmethod
    def of(cls, host: VmHost, taken: Resources) -> HostView:
        return cls(
            hostId=host.host_id,
            state=host.state,
            memoryMib=host.memory_mib,
            vcpus=host.vcpus,
            memoryTakenMib=taken.memory_mib,
            vcpusTaken=taken.vcpus,
            machines=taken.machines,
            driver=host.driver,
            accelerator=host.accelerator,
            version=host.version,
            seenAt=host.seen_at,
        )


class Reason(RequestModel):
    """An administrator's reason, stored in the audit log."""

    reason: FreeText = Field(min_length=1, examples=["Mines cryptocurrency"])
