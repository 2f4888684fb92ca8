"""`/`, `/health`, `/api/providers`: what this is, and whether it lives."""

from __future__ import annotations

import asyncio

from fastapi.responses import PlainTextResponse

from polydev import __version__
from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import (
    media_response,
    problem_responses,
    public_problem_responses,
)
from polydev.controller.api.http.services import ReadCaller, Services, ServicesDep
from polydev.controller.api.schemas.system import HealthView, ProviderView
from polydev.shared.errors import PolydevError
from polydev.shared.providers import all_providers

router = routers.router(tags=["general"])

_GREETING = """\
Polydev {version}: a private microVM per person for AI coding CLIs, and a way to log them in there.

This is the controller. The command `polydev` speaks to it; its API is described at /openapi.json,
and needs a token: Authorization: Bearer <token>.
"""


@router.get(
    "/",
    response_class=PlainTextResponse,
    responses=public_problem_responses() | media_response("text/plain"),
)
async def get_greeting() -> str:
    """What this is."""
    return _GREETING.format(version=__version__)


@router.get("/health", responses=public_problem_responses())
async def get_health(services: ServicesDep) -> HealthView:
    """That the controller lives, and whether it reaches what it needs."""
    checks = {
        "store": await _can_read_store(services),
        "host": await _host_problem(services) is None,
    }
    status = "ok" if all(checks.values()) else "degraded"
    return HealthView(status=status, version=__version__, checks=checks)


@router.get("/api/providers", responses=problem_responses())
async def list_providers(caller: ReadCaller) -> list[ProviderView]:
    """The CLIs that can be connected."""
    return [ProviderView.of(it) for it in all_providers()]


async def _can_read_store(services: Services) -> bool:
    try:
        async with services.database.read() as connection:
            await connection.exec_driver_sql("SELECT 1")
    except Exception:
        return False
    return True


async def _host_problem(services: Services) -> PolydevError | None:
    """Why a host agent does not answer, if there is one that does not."""
    hosts = services.hosts.every().values()
    answers = await asyncio.gather(*(host.health() for host in hosts), return_exceptions=True)
    return next((it for it in answers if isinstance(it, PolydevError)), None)
