"""`/api/account/usage`: how much the caller uses of what they may have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import problem_responses
from polydev.controller.api.http.services import ReadCaller, ServicesDep
from polydev.shared.domain import Usage

router = routers.router(prefix="/api/account", tags=["account"])


class Amounts(BaseModel):
    """How much of each."""

    model_config = ConfigDict(frozen=True)

    machines: int = Field(description="Besides sessions' browser machines", examples=[1])
    memoryMib: int = Field(  # noqa: N815  (as in all answers)
        description="Of machines that run", examples=[2560]
    )
    sessions: int = Field(description="Connect sessions at once", examples=[1])

    @classmethod
    def of(cls, usage: Usage) -> Amounts:
        return cls(machines=usage.machines, memoryMib=usage.memory_mib, sessions=usage.sessions)


class UsageView(BaseModel):
    """What a person uses, and may use."""

    model_config = ConfigDict(frozen=True)

    used: Amounts = Field(description="What waiting sessions will need counts already")
    limits: Amounts | None = Field(description="null: an administrator is not limited")


@router.get("/usage", responses=problem_responses())
async def get_usage(caller: ReadCaller, services: ServicesDep) -> UsageView:
    """How much the caller uses of what they may have."""
    used, limits = await services.machines.usage(caller)
    return UsageView(used=Amounts.of(used), limits=None if limits is None else Amounts.of(limits))
