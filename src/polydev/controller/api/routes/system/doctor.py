"""Route `/api/doctor`: health checks, as far as the caller may see them.

Administrators see all findings; users see those about their own machines and logins. The command
`polydev doctor` adds checks that only the local machine can do.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.concurrency_limits import CHECKS
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.services import ReadCaller, ServicesDep
from polydev.shared.domain import Finding
from polydev.shared.errors import TooManyRequests

router = routers.router(prefix="/api/doctor", tags=["general"])


class FindingView(BaseModel):
    """The result of one check."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the check", examples=["logins"])
    ok: bool | None = Field(description="null: the check could not run")
    message: str = Field(examples=["2 logins, all valid"])
    hint: str = Field(description="What to do if it is not ok", examples=[""])
    vm_id: str | None = Field(description="The affected machine", examples=[None])
    host_id: str | None = Field(description="The VM host that reported it", examples=[None])

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
    """All findings, in the order in which to fix them."""

    model_config = ConfigDict(frozen=True)

    ok: bool = Field(description="No check failed")
    checks: list[FindingView]


@router.get("", responses=problem_responses(TooManyRequests))
async def examine(caller: ReadCaller, services: ServicesDep) -> DoctorView:
    """Run health checks: of everything (administrators), or of your own resources."""
    with CHECKS.acquire(caller):
        found = await services.health_checks.run(caller.owner_filter)
    return DoctorView(
        ok=all(finding.ok is not False for finding in found),
        checks=[FindingView.of(finding) for finding in found],
    )
