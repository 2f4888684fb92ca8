"""`/api/doctor`: what is well and what is not, as far as the caller may know.

An administrator is told everything; anybody else what is about their own machines and logins. What
this machine alone can tell, `polydev doctor` adds.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.concurrency_limits import CHECKS
from polydev.controller.api.http.error_responses import problem_responses
from polydev.controller.api.http.services import ReadCaller, ServicesDep
from polydev.shared.domain import Finding
from polydev.shared.errors import TooManyRequests

router = routers.router(prefix="/api/doctor", tags=["general"])


class FindingView(BaseModel):
    """Something that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What was looked at", examples=["logins"])
    ok: bool | None = Field(description="null: it could not be looked at")
    message: str = Field(examples=["2, each known to its CLI"])
    hint: str = Field(description="What to do, when it is not ok", examples=[""])
    vm_id: str | None = Field(description="The machine that it is about", examples=[None])
    host_id: str | None = Field(description="The VM host that said it", examples=[None])

    @classmethod
    def of(cls, finding: Finding) -> FindingView:
        return cls(
            name=finding.name,
            ok=finding.ok,
            message=finding.message,
            hint=finding.hint,
            vm_id=finding.vm_id,
            host_id=finding.host_id,
        )


class DoctorView(BaseModel):
    """What was found, in the order in which one would mend it."""

    model_config = ConfigDict(frozen=True)

    ok: bool = Field(description="Whether nothing is wrong")
    checks: list[FindingView]


@router.get("", responses=problem_responses(TooManyRequests))
async def examine(caller: ReadCaller, services: ServicesDep) -> DoctorView:
    """Look for what is wrong and say what to do: everything, or what is the caller's."""
    with CHECKS.acquire(caller):
        found = await services.health_checks.run(caller.owner_filter)
    return DoctorView(
        ok=all(finding.ok is not False for finding in found),
        checks=[FindingView.of(finding) for finding in found],
    )
