"""Routes `/`, `/health` and `/api/providers`."""

from __future__ import annotations

import asyncio

from fastapi.responses import PlainTextResponse

from polydev import __version__
from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import (
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
Polydev {version}: private microVMs for AI coding CLIs, logged in and ready.

This is the controller. The command `polydev` and the web pages use it. Its API is described at
/openapi.json and needs a token: Authorization: Bearer <token>.
"""


@router.get(
    "/",
    response_class=PlainTextResponse,
    responses=public_problem_responses() | media_response("text/plain"),
)
async def get_greeting() -> str:
    """Describe this server as plain text."""
    return _GREETING.format(version=__version__)


@router.get("/health", responses=public_problem_responses())
async def get_health(services: ServicesDep) -> HealthView:
    """Return the health of the controller, its database and its hosts."""
    checks = {
        "store": await _can_read_store(services),
        "host": await _host_problem(services) is None,
    }
    status = "ok" if all(checks.values()) else "degraded"
    return HealthView(status=status, version=__version__, checks=checks)


@router.get("/api/providers", responses=problem_responses())
async def list_providers(caller: ReadCaller) -> list[ProviderView]:
    """List the CLIs that can be connected."""
    return [ProviderView.of(it) for it in all_providers()]


async def _can_read_store(services: Services) -> bool:
    try:
        async with services.database.read() as connection:
            await connection.exec_driver_sql("SELECT 1")
    except Exception:
        return False
    return True


async def _host_problem(services: Services) -> PolydevError | None:
    """Return the error of an unreachable host agent, if any."""
    hosts = services.hosts.clients().values()
    answers = await asyncio.gather(*(host.health() for host in hosts), return_exceptions=True)
    return next((it for it in answers if isinstance(it, PolydevError)), None)
