"""Routes `/api/vm/{vmId}/usage` and `…/errors`: what the host knows of a machine.

The host measures the VMM's process; the guest is not involved.
"""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import Query
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import media_response, problem_responses
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
    """Average CPU usage up to a time, and memory then."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    cpu: float = Field(examples=[0.25], description="CPU cores in use")
    memoryBytes: int = Field(examples=[536870912], description="Host memory in use")


class UsageLimits(BaseModel):
    """Limits of a machine."""

    model_config = ConfigDict(frozen=True)

    cpu: int = Field(examples=[1], description="CPU cores")
    memoryBytes: int = Field(examples=[1073741824], description="Memory of the guest")


class MachineUsage(BaseModel):
    """Recent usage of the host by a machine, oldest sample first."""

    model_config = ConfigDict(frozen=True)

    periodSeconds: float = Field(examples=[5.0])
    samples: list[UsageSample]
    limits: UsageLimits

    @classmethod
    def of(cls, machine: Machine, usage: Usage, last: int) -> Self:
        """Return the last samples, `last` at most."""
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
    last: Annotated[int, Query(ge=1, le=720, description="Maximum number of samples")] = 720,
) -> MachineUsage:
    """Return up to one hour of CPU and memory usage.

    There are no samples of pauses.
    """
    machine = await get_own_machine(services, caller.user_id, vm_id)
    usage = await services.hosts.client(machine.host_id).usage(VmId(vm_id))
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
    """Return the end of a machine's hypervisor log, without control characters."""
    host = await get_own_host(services, caller.user_id, vm_id)
    return await host.errors(VmId(vm_id), tail_bytes)
