"""Routes `/api/admin`: hosts, and the machines and sessions of all users.

An administrator's action on another user's resource needs a reason, which the audit log stores.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query

from polydev.controller.api.http import routers
from polydev.controller.api.http.idempotency import IdempotentRoute
from polydev.controller.api.http.openapi_responses import paged_response, problem_responses
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import (
    ID_PATTERN,
    MAX_ID,
    IdText,
    SessionIdInPath,
    VmIdInPath,
)
from polydev.controller.api.http.services import AdminCaller, Services, ServicesDep
from polydev.controller.api.schemas.connect import SessionSummary
from polydev.controller.api.schemas.hosts import HostView, Reason
from polydev.controller.api.schemas.machines import PlacedMachine
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import capacity, hosts, machines
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import AuditEntry, HostId, HostState, Resources, SessionId, UserId, VmId
from polydev.shared.errors import (
    HostInUse,
    IdempotencyConflict,
    NoSuchHost,
    NoSuchMachine,
    NoSuchSession,
    SessionEnded,
)

router = routers.router(prefix="/api/admin", tags=["administration"], route_class=IdempotentRoute)

HostIdInPath = Annotated[
    str,
    Path(
        alias="hostId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="Id of the VM host",
        examples=["local"],
    ),
]
OfUser = Annotated[IdText | None, Query(alias="userId", description="Only those of this user")]


@router.get("/hosts", responses=problem_responses())
async def list_hosts(caller: AdminCaller, services: ServicesDep) -> list[HostView]:
    """List the VM hosts by name, with their capacity and usage."""
    async with services.database.read() as connection:
        rows = await hosts.list_all(connection)
        taken = await capacity.get_taken_by_host(connection)
    return [HostView.of(row, taken.get(row.host_id, Resources())) for row in rows]


@router.post("/hosts/{hostId}/drain", responses=problem_responses(NoSuchHost, IdempotencyConflict))
async def drain_host(
    host_id: HostIdInPath, body: Reason, caller: AdminCaller, services: ServicesDep
) -> HostView:
    """Stop placing new machines on a host. Its machines stay."""
    entry = caller.audit_entry("host.drain", host_id, None, body.reason)
    return await _set_host_state(services, host_id, HostState.DRAINING, entry)


@router.post(
    "/hosts/{hostId}/activate", responses=problem_responses(NoSuchHost, IdempotencyConflict)
)
async def activate_host(
    host_id: HostIdInPath, body: Reason, caller: AdminCaller, services: ServicesDep
) -> HostView:
    """Allow new machines on a host again."""
    entry = caller.audit_entry("host.activate", host_id, None, body.reason)
    return await _set_host_state(services, host_id, HostState.ACTIVE, entry)


@router.delete(
    "/hosts/{hostId}", status_code=204, responses=problem_responses(NoSuchHost, HostInUse)
)
async def forget_host(host_id: HostIdInPath, caller: AdminCaller, services: ServicesDep) -> None:
    """Delete a host without machines.

    A host that POLYDEV_HOSTS names (`local`, if it is unset) is added again at the next start.
    """
    async with services.database.write() as connection:
        await hosts.delete(connection, HostId(host_id))
        await audit.record(connection, caller.audit_entry("host.forget", host_id, None))


@router.get("/machines", responses=problem_responses() | paged_response())
async def list_all_machines(
    caller: AdminCaller, services: ServicesDep, paged: PageParams, user_id: OfUser = None
) -> list[PlacedMachine]:
    """List the machines of all users, oldest first."""
    span = paged.page_spec(datetime, str)
    async with services.database.read() as connection:
        if user_id is None:
            rows = await machines.list_alive(connection, span)
        else:
            rows = await machines.list_for_user(connection, UserId(user_id), span)
    return [PlacedMachine.of(row) for row in paged.trim(rows, lambda it: (it.created_at, it.vm_id))]


@router.post(
    "/machines/{vmId}/destroy",
    status_code=202,
    responses=problem_responses(NoSuchMachine, IdempotencyConflict),
)
async def destroy_any_machine(
    vm_id: VmIdInPath, body: Reason, caller: AdminCaller, services: ServicesDep
) -> PlacedMachine:
    """Destroy a machine of any user, with its disk."""
    machine = await services.machines.destroy(caller, VmId(vm_id), body.reason)
    return PlacedMachine.of(machine)


@router.get("/sessions", responses=problem_responses() | paged_response())
async def list_all_sessions(
    caller: AdminCaller,
    services: ServicesDep,
    paged: PageParams,
    user_id: OfUser = None,
    live: Annotated[bool, Query(description="Only live sessions")] = False,
) -> list[SessionSummary]:
    """List the connect sessions of all users, newest first."""
    span, user = paged.page_spec(datetime, str), None if user_id is None else UserId(user_id)
    async with services.database.read() as connection:
        rows = await sessions.list_page(connection, span, user_id=user, live=live)
    return [
        SessionSummary.of(row)
        for row in paged.trim(rows, lambda it: (it.created_at, it.session_id))
    ]


@router.post(
    "/sessions/{sessionId}/cancel",
    status_code=202,
    responses=problem_responses(NoSuchSession, SessionEnded, IdempotencyConflict),
)
async def cancel_any_session(
    session_id: SessionIdInPath, body: Reason, caller: AdminCaller, services: ServicesDep
) -> SessionSummary:
    """Cancel a connect session of any user. It ends as `cancelled`."""
    session = await services.connect.cancel(caller, SessionId(session_id), body.reason)
    return SessionSummary.of(session)


async def _set_host_state(
    services: Services, host_id: str, state: HostState, entry: AuditEntry
) -> HostView:
    async with services.database.write() as connection:
        await hosts.set_state(connection, HostId(host_id), state)
        await audit.record(connection, entry)
        host = await hosts.get(connection, HostId(host_id))
        taken = await capacity.get_taken_by_host(connection)
    return HostView.of(host, taken.get(host.host_id, Resources()))
