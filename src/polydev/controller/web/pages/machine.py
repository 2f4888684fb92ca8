"""`/machine` and `/machine/{vmId}`: state and actions of a user's machine.

`/machine` shows the active CLI machine, or how to get one. The head of the page refreshes after
events; the browser (`static/machine/`) draws charts and logs from the API.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from polydev.controller.access import Caller
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.machines.machine_access import get_own_machine
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import machines
from polydev.controller.web.rendering.labels import machine_badge
from polydev.controller.web.rendering.render import Signed, fragment, page
from polydev.shared.domain import BY_READINESS, Machine, MachineKind, MachineState, VmId
from polydev.shared.errors import NoSuchMachine, PolydevError
from polydev.shared.host_protocol import HostMachineView
from polydev.shared.providers import all_providers

router = APIRouter(include_in_schema=False)

_HOST_LIMIT_S = 2.0
"""The page appears without the host's details if they take longer."""


@dataclass(frozen=True, slots=True)
class ConnectedCli:
    """A CLI that is logged in in a machine."""

    id: str
    name: str


@router.get("/machine")
async def show_active_machine(request: Request, caller: Signed, services: ServicesDep) -> Response:
    """Show the active CLI machine, or how to get one."""
    async with services.database.read(caller.user_id) as connection:
        for state in BY_READINESS:
            found = await machines.find_cli_machine(connection, caller.user_id, state)
            if found is not None:
                break
        others = await machines.list_for_user(connection, caller.user_id)
    if found is None:
        return page(request, "machine/none.html", others=[_summary(it) for it in others])
    return page(request, "machine/page.html", **await _context(services, caller, found))


@router.get("/machine/{vm_id}")
async def show_machine(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """Show a machine. Raises NoSuchMachine."""
    found = await get_own_machine(services, caller.user_id, vm_id)
    return page(request, "machine/page.html", **await _context(services, caller, found))


@router.get("/fragments/machine/{vm_id}")
async def refresh_machine(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """Render the head of a machine's page again; redirect if the machine is deleted."""
    try:
        found = await get_own_machine(services, caller.user_id, vm_id)
    except NoSuchMachine:
        return Response(status_code=204, headers={"Polydev-Redirect": "/machine"})
    return fragment(request, "machine/head.html", **await _context(services, caller, found))


async def _context(services: Services, caller: Caller, machine: Machine) -> dict[str, Any]:
    user = caller.user_id
    async with services.database.read(user) as connection:
        owned = await machines.list_for_user(connection, user)
        stored = await credentials.list_for_user(connection, user)
    connected = {
        it.provider for it in stored if it.vm_id == machine.vm_id and it.revoked_at is None
    }
    return {
        "connected": [ConnectedCli(it.id, it.name) for it in all_providers() if it.id in connected],
        "host": await _host_view(services, machine),
        "others": [_summary(it) for it in owned if it.vm_id != machine.vm_id],
        **_summary(machine),
    }


def _summary(machine: Machine) -> dict[str, Any]:
    """Return template variables for a machine."""
    badge, label = machine_badge(machine)
    return {
        "machine": machine,
        "badge": badge,
        "label": label,
        "kind": "CLI machine" if machine.vm_type is MachineKind.CLI else "Browser machine",
        "is_running": machine.status is MachineState.RUNNING,
        "is_usable": machine.status.is_usable,
        "is_hibernated": machine.status is MachineState.HIBERNATED,
        "is_at_rest": machine.status.is_at_rest,
        "is_gone": machine.status.is_gone,
    }


async def _host_view(services: Services, machine: Machine) -> HostMachineView | None:
    """Ask the host about the machine; None if it does not answer in time."""
    try:
        async with asyncio.timeout(_HOST_LIMIT_S):
            return await services.hosts.client(machine.host_id).machine(VmId(machine.vm_id))
    except (PolydevError, TimeoutError):
        return None
