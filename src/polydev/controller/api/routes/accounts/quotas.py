"""Route `/api/account/usage`: usage and quotas of the caller."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.services import ReadCaller, ServicesDep
from polydev.shared.domain import Usage

router = routers.router(prefix="/api/account", tags=["account"])


class Amounts(BaseModel):
    """An amount of each resource."""

    model_config = ConfigDict(frozen=True)

    machines: int = Field(description="Without the browser machines of sessions", examples=[1])
    memoryMib: int = Field(  # noqa: N815  (field names of the API)
        description="Memory of running machines", examples=[2560]
    )
    sessions: int = Field(description="Concurrent connect sessions", examples=[1])

    @classmethod
    def of(cls, usage: Usage) -> Amounts:
        return cls(machines=usage.machines, memoryMib=usage.memory_mib, sessions=usage.sessions)


class UsageView(BaseModel):
    """Usage and limits of a user."""

    model_config = ConfigDict(frozen=True)

    used: Amounts = Field(description="Includes what queued sessions will need")
    limits: Amounts | None = Field(description="null: no limits (administrators)")


@router.get("/usage", responses=problem_responses())
async def get_usage(caller: ReadCaller, services: ServicesDep) -> UsageView:
    """Return your usage and your limits."""
    used, limits = await services.machines.usage(caller)
    return UsageView(used=Amounts.of(used), limits=None if limits is None else Amounts.of(limits))
