"""`/machine` and `/machine/{vmId}`: a person's machine, how it does, and what may be done with it.

`/machine` is the active CLI machine, or how to get one. The head of the page is drawn again on each
event; charts and logs are drawn by the browser (`static/machine.js`) from the API. What a machine
printed is text.
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
from polydev.shared.host_protocol import MachineView
from polydev.shared.providers import all_providers

router = APIRouter(include_in_schema=False)

_HOST_LIMIT_S = 2.0
"""The page does not wait longer for what only the host knows."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A CLI that is logged in in a machine."""

    id: str
    name: str


@router.get("/machine")
async def show_active_machine(request: Request, caller: Signed, services: ServicesDep) -> Response:
    """The active CLI machine; without one, how to get it."""
    async with services.database.read(caller.user_id) as connection:
        for state in BY_READINESS:
            found = await machines.find_cli_machine(connection, caller.user_id, state)
            if found is not None:
                break
        others = await machines.list_for_user(connection, caller.user_id)
    if found is None:
        return page(request, "machine_none.html", others=[_row(it) for it in others])
    return page(request, "machine.html", **await _told(services, caller, found))


@router.get("/machine/{vm_id}")
async def show_machine(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """One machine. Raises NoSuchMachine."""
    found = await get_own_machine(services, caller.user_id, vm_id)
    return page(request, "machine.html", **await _told(services, caller, found))


@router.get("/fragments/machine/{vm_id}")
async def machine_again(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """The head of a machine's page as it stands now; one that is gone is left."""
    try:
        found = await get_own_machine(services, caller.user_id, vm_id)
    except NoSuchMachine:
        return Response(status_code=204, headers={"HX-Redirect": "/machine"})
    return fragment(request, "machine_head.html", **await _told(services, caller, found))


async def _told(services: Services, caller: Caller, machine: Machine) -> dict[str, Any]:
    user = caller.user_id
    async with services.database.read(user) as connection:
        every = await machines.list_for_user(connection, user)
        held = await credentials.list_for_user(connection, user)
    here = {it.provider for it in held if it.vm_id == machine.vm_id and it.revoked_at is None}
    return {
        "connected": [Connected(it.id, it.name) for it in all_providers() if it.id in here],
        "host": await _on_its_host(services, machine),
        "others": [_row(it) for it in every if it.vm_id != machine.vm_id],
        **_row(machine),
    }


def _row(machine: Machine) -> dict[str, Any]:
    """A machine, and how its state and kind are called."""
    state, words = machine_badge(machine)
    return {
        "machine": machine,
        "state": state,
        "words": words,
        "kind": "CLI machine" if machine.vm_type is MachineKind.CLI else "Browser machine",
        "runs": machine.status is MachineState.RUNNING,
        "usable": machine.status.is_usable,
        "sleeps": machine.status is MachineState.HIBERNATED,
        "rests": machine.status.is_at_rest,
        "ends": machine.status.is_gone,
    }


async def _on_its_host(services: Services, machine: Machine) -> MachineView | None:
    """What its host knows besides; None when it does not say."""
    try:
        async with asyncio.timeout(_HOST_LIMIT_S):
            return await services.hosts.of(machine.host_id).machine(VmId(machine.vm_id))
    except (PolydevError, TimeoutError):
        return None
