"""Routes `/api/vm`: machines."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import PlainTextResponse
from starlette.websockets import WebSocket

from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import LONG_POLLS, PROGRAMS
from polydev.controller.api.http.idempotency import IdempotentRoute, stable_id
from polydev.controller.api.http.openapi_responses import (
    media_response,
    paged_response,
    problem_responses,
)
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import VmIdInPath
from polydev.controller.api.http.problem_documents import problem_response
from polydev.controller.api.http.services import (
    MachinesCaller,
    ReadCaller,
    Services,
    ServicesDep,
    authenticate,
    permission_check,
    resolve_user,
)
from polydev.controller.api.routes.connect.sessions import After, Wait
from polydev.controller.api.routes.machines.machine_access import MachineAccess
from polydev.controller.api.schemas.machines import (
    ActiveCli,
    CreateMachine,
    DestroyMachine,
    MachineView,
)
from polydev.controller.store.queries.machines import machines
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.resume_on_use import find_usable_cli_machine
from polydev.shared.domain import Scope, UserId, VmId
from polydev.shared.errors import (
    ChannelLost,
    Failed,
    HostUnreachable,
    IdempotencyConflict,
    MachineBusy,
    NoCapacity,
    NoSuchMachine,
    NoSuchUser,
    PolydevError,
    QuotaExceeded,
    TooManyRequests,
)
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClient

router = routers.router(prefix="/api/vm", tags=["machines"], route_class=IdempotentRoute)

MAX_TAIL_BYTES = 1024 * 1024
REQUESTED = "requested"
"""The reason recorded when the user asked for a hibernation or resume."""

_CHANGE_RESPONSES = problem_responses(NoSuchMachine, MachineBusy, IdempotencyConflict)
_START_RESPONSES = problem_responses(
    *(NoSuchMachine, NoSuchUser, MachineBusy, QuotaExceeded, NoCapacity, HostUnreachable),
    IdempotencyConflict,
)


@router.post(
    "/create",
    status_code=202,
    responses=problem_responses(NoSuchUser, QuotaExceeded, NoCapacity, IdempotencyConflict),
)
async def create_machine(
    body: CreateMachine, caller: MachinesCaller, services: ServicesDep, request: Request
) -> MachineView:
    """Create a machine."""
    user = await resolve_user(services, caller, body.userId)
    vm_id = VmId(f"vm-{stable_id(request)}")
    return MachineView.of(await services.machines.create(caller, user, body.vmType, vm_id))


@router.post(
    "/destroy", status_code=202, responses=problem_responses(NoSuchMachine, IdempotencyConflict)
)
async def destroy_machine(
    body: DestroyMachine, caller: MachinesCaller, services: ServicesDep
) -> MachineView:
    """Destroy a machine, with its disk."""
    return MachineView.of(await services.machines.destroy(caller, VmId(body.vmId)))


@router.post("/{vmId}/stop", status_code=202, responses=_CHANGE_RESPONSES)
async def stop_machine(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep
) -> MachineView:
    """Stop a machine. Its disk stays."""
    return MachineView.of(await services.machines.stop(caller, VmId(vm_id)))


@router.post("/{vmId}/start", status_code=202, responses=_START_RESPONSES)
async def start_machine(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep
) -> MachineView:
    """Start a stopped machine, or resume a hibernated one."""
    return MachineView.of(await services.machines.start(Actor.for_caller(caller), VmId(vm_id)))


@router.post("/{vmId}/hibernate", status_code=202, responses=_CHANGE_RESPONSES)
async def hibernate_machine(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep
) -> MachineView:
    """Hibernate a machine: save its memory to disk and free it.

    It resumes when it is used. Refused while a chat turn or a login uses it.
    """
    cause = Actor.for_caller(caller, REQUESTED)
    return MachineView.of(await services.machines.hibernate(cause, VmId(vm_id)))


@router.post("/{vmId}/resume", status_code=202, responses=_START_RESPONSES)
async def resume_machine(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep
) -> MachineView:
    """Resume a hibernated machine, or start a stopped one."""
    cause = Actor.for_caller(caller, REQUESTED)
    return MachineView.of(await services.machines.start(cause, VmId(vm_id)))


@router.get("/list", responses=problem_responses() | paged_response())
async def list_machines(
    caller: ReadCaller, services: ServicesDep, paged: PageParams
) -> list[MachineView]:
    """List your machines, oldest first."""
    async with services.database.read(caller.user_id) as connection:
        rows = await machines.list_for_user(
            connection, caller.user_id, paged.page_spec(datetime, str)
        )
    return [MachineView.of(row) for row in paged.trim(rows, lambda it: (it.created_at, it.vm_id))]


@router.get("/active-cli", responses=problem_responses(NoSuchMachine))
async def get_active_cli(caller: ReadCaller, services: ServicesDep) -> ActiveCli:
    """Return your CLI machine: running, or hibernated and resumed when used."""
    async with services.database.read(caller.user_id) as connection:
        found = await find_usable_cli_machine(connection, caller.user_id)
    if found is None:
        raise NoSuchMachine("No active CLI VM", hint=Hint.CONNECT_CLI.text(provider="codex"))
    return ActiveCli(
        vmId=found.vm_id,
        ipAddress=found.ip_address,
        status=found.status,
        createdAt=found.created_at,
    )


@router.get("/{vmId}", responses=problem_responses(NoSuchMachine, TooManyRequests))
async def get_machine(
    vm_id: VmIdInPath,
    caller: ReadCaller,
    services: ServicesDep,
    after: After = None,
    wait: Wait = 0,
) -> MachineView:
    """Return a machine. With `after` and `wait`, wait until its version differs.

    A waiting request gets a destroyed machine once more as `destroyed`; others get 404.
    """
    fetch = _machine_fetcher(services, caller.user_id, vm_id, also_gone=after is not None)
    if after is None:
        return await fetch()
    with LONG_POLLS.acquire(caller):
        return await streams.wait_for_change(services.database, fetch, after, wait)


@router.get(
    "/{vmId}/console",
    response_class=PlainTextResponse,
    responses=problem_responses(NoSuchMachine, HostUnreachable, ChannelLost, Failed)
    | media_response("text/plain"),
)
async def get_console(
    vm_id: VmIdInPath,
    caller: ReadCaller,
    services: ServicesDep,
    tail_bytes: Annotated[int, Query(ge=1, le=MAX_TAIL_BYTES)] = 65536,
) -> str:
    """Return the end of a machine's console output, without control characters."""
    await _machine_fetcher(services, caller.user_id, vm_id)()
    return await (await _get_host(services, vm_id)).console(vm_id, tail_bytes)


@router.websocket("/{vmId}/exec")
async def run_program(socket: WebSocket, vm_id: VmIdInPath, services: ServicesDep) -> None:
    """Run a program in a machine, which resumes if hibernated."""
    try:
        caller = await authenticate(socket)
        caller.require(Scope.MACHINES)
        await _machine_fetcher(services, caller.user_id, vm_id)()
        slot = ExitStack()
        slot.enter_context(PROGRAMS.acquire(caller))
    except PolydevError as error:
        await socket.send_denial_response(problem_response(error))
        return
    with slot:
        await socket.accept()
        access = MachineAccess(services, caller, VmId(vm_id), "a program")
        await streams.relay_program(socket, access, permission_check(socket, Scope.MACHINES))


async def _get_host(services: Services, vm_id: str) -> HostClient:
    async with services.database.read() as connection:
        found = await machines.get(connection, VmId(vm_id), None)
    return services.hosts.client(found.host_id)


def _machine_fetcher(
    services: Services, user_id: UserId, vm_id: str, *, also_gone: bool = False
) -> Callable[[], Coroutine[Any, Any, MachineView]]:
    """Return a function that reads the machine; `also_gone`: even a destroyed one."""

    async def fetch() -> MachineView:
        async with services.database.read(user_id) as connection:
            if also_gone:
                found = await machines.find(connection, VmId(vm_id))
                if found is not None and found.user_id == user_id:
                    return MachineView.of(found)
            return MachineView.of(await machines.get(connection, VmId(vm_id), user_id))

    return fetch
