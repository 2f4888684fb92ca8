"""`/api/vm/{vmId}/usage` and `…/errors`: how a machine does, as its host sees it.

The guest is not asked: its host measures the process that it runs in.
"""

# ruff: noqa: N815  (the names are the wire's)

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import Query
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import media_response, problem_responses
from polydev.controller.api.http.path_params import VmIdInPath
from polydev.controller.api.http.services import ReadCaller, ServicesDep
from polydev.controller.api.routes.machines.machine_access import get_own_host, get_own_machine
from polydev.shared.domain import Machine, VmId
from polydev.shared.errors import ChannelLost, Failed, HostUnreachable, NoSuchMachine
from polydev.shared.host_protocol import Usage

router = routers.router(prefix="/api/vm", tags=["machines"])

MAX_TAIL_BYTES = 1024 * 1024
_MIB = 1024 * 1024


class UsageSample(BaseModel):
    """What a machine used on average up to a moment, and the memory it had then."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    cpu: float = Field(examples=[0.25], description="Processor cores in use")
    memoryBytes: int = Field(examples=[536870912], description="Of the host's memory")


class UsageLimits(BaseModel):
    """What a machine can have at most."""

    model_config = ConfigDict(frozen=True)

    cpu: int = Field(examples=[1], description="Processor cores")
    memoryBytes: int = Field(examples=[1073741824], description="What the guest sees")


class MachineUsage(BaseModel):
    """How much of its host a machine used lately, the oldest sample first."""

    model_config = ConfigDict(frozen=True)

    periodSeconds: float = Field(examples=[5.0])
    samples: list[UsageSample]
    limits: UsageLimits

    @classmethod
    def of(cls, machine: Machine, usage: Usage, last: int) -> Self:
        """The last so many samples."""
        return cls(
            periodSeconds=usage.period_s,
            samples=[
                UsageSample(at=it.at, cpu=it.cpu, memoryBytes=it.memory_bytes)
                for it in usage.samples[-last:]
            ],
            limits=UsageLimits(cpu=machine.size.vcpus, memoryBytes=machine.size.memory_mib * _MIB),
        )


@router.get("/{vmId}/usage", responses=problem_responses(NoSuchMachine, HostUnreachable, Failed))
async def get_machine_usage(
    vm_id: VmIdInPath,
    caller: ReadCaller,
    services: ServicesDep,
    last: Annotated[int, Query(ge=1, le=720, description="How many samples at most")] = 720,
) -> MachineUsage:
    """What a machine used of its host, for up to an hour; nothing of a time when it did not run."""
    machine = await get_own_machine(services, caller.user_id, vm_id)
    usage = await services.hosts.of(machine.host_id).usage(VmId(vm_id))
    return MachineUsage.of(machine, usage, last)


@router.get(
    "/{vmId}/errors",
    response_class=PlainTextResponse,
    responses=problem_responses(NoSuchMachine, HostUnreachable, ChannelLost, Failed)
    | media_response("text/plain"),
)
async def get_error_log(
    vm_id: VmIdInPath,
    caller: ReadCaller,
    services: ServicesDep,
    tail_bytes: Annotated[int, Query(ge=1, le=MAX_TAIL_BYTES)] = 65536,
) -> str:
    """The end of what a machine's VMM complained about, without control characters."""
    host = await get_own_host(services, caller.user_id, vm_id)
    return await host.errors(VmId(vm_id), tail_bytes)
