"""`/`, `/health`, `/api/providers`, `/api/doctor`: what this is, and how it is."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from polydev import __version__
from polydev.api.answers import answers, of_type, open_answers
from polydev.api.schemas import CheckView, DoctorView, HealthView, ProviderView
from polydev.api.services import Administering, Reach, Reading, Services
from polydev.domain import MachineState
from polydev.errors import Failed, HostUnreachable, PolydevError
from polydev.providers import all_providers
from polydev.store import machines

router = APIRouter(tags=["general"])

_GREETING = """\
Polydev {version}: a private microVM per person for AI coding CLIs, and a way to log them in there.

This is the controller. The command `polydev` speaks to it; its API is described at /openapi.json,
and needs a token: Authorization: Bearer <token>.
"""


@router.get("/", response_class=PlainTextResponse, responses=open_answers() | of_type("text/plain"))
async def get_greeting() -> str:
    """What this is."""
    return _GREETING.format(version=__version__)


@router.get("/health", responses=open_answers())
async def get_health(services: Reach) -> HealthView:
    """That the controller lives, and whether it reaches what it needs."""
    checks = {"store": await _reads(services), "host": await _host_problem(services) is None}
    status = "ok" if all(checks.values()) else "degraded"
    return HealthView(status=status, version=__version__, checks=checks)


@router.get("/api/providers", responses=answers())
async def list_providers(caller: Reading) -> list[ProviderView]:
    """The CLIs that can be connected."""
    return [ProviderView(id=it.id, name=it.name, accepts=it.accepts) for it in all_providers()]


@router.get("/api/doctor", responses=answers(HostUnreachable, Failed))
async def examine(caller: Administering, services: Reach) -> DoctorView:
    """What is well, and what to do about what is not."""
    checks = [
        CheckView(name="controller", ok=True, message=f"Version {__version__} answers"),
        CheckView(name="database", ok=await _reads(services), message="The database is read"),
    ]
    problem = await _host_problem(services)
    if problem is not None:
        checks.append(
            CheckView(name="host agent", ok=False, message=problem.message, hint=problem.hint)
        )
        return DoctorView(checks=checks)
    agent = await services.host.health()
    words = f"Version {agent.version}, driver {agent.driver} ({agent.accelerator})"
    checks.append(CheckView(name="host agent", ok=True, message=words))
    checks.append(await _orphans(services))
    return DoctorView(checks=checks)


async def _orphans(services: Services) -> CheckView:
    """Machines that rows and host do not agree on."""
    async with services.database.read() as connection:
        rows = {it.vm_id: it for it in await machines.alive(connection)}
    there = {view.vm_id for view in await services.host.machines()}
    unknown = sorted(there - {str(vm_id) for vm_id in rows})
    lost = sorted(
        vm_id
        for vm_id, row in rows.items()
        if row.status is MachineState.RUNNING and vm_id not in there
    )
    if not unknown and not lost:
        return CheckView(name="machines", ok=True, message=f"{len(there)}, all of them known")
    words = []
    if unknown:
        words.append(f"on the host but not in the database: {', '.join(unknown)}")
    if lost:
        words.append(f"in the database but not on the host: {', '.join(lost)}")
    return CheckView(
        name="machines",
        ok=False,
        message="; ".join(words).capitalize(),
        hint="What the controller knows is put right within a minute; other machines are not its "
        "own to destroy",
    )


async def _reads(services: Services) -> bool:
    try:
        async with services.database.read() as connection:
            await connection.exec_driver_sql("SELECT 1")
    except Exception:
        return False
    return True


async def _host_problem(services: Services) -> PolydevError | None:
    try:
        await services.host.health()
    except PolydevError as error:
        return error
    return None
