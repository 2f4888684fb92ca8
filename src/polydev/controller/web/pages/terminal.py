"""`/terminal/{vmId}`: terminals in a user's machine, with xterm.js.

xterm.js creates `<style>` elements for its colors and sizes. So only this page allows inline
styles: those with the nonce of its response (`static/terminal/xterm_styles.js`, decision 0035).
"""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import ServicesDep
from polydev.controller.api.routes.machines.machine_access import get_own_machine
from polydev.controller.web.rendering.render import Signed, page
from polydev.shared.domain import MachineState

router = APIRouter(include_in_schema=False)

TERMINALS = ("main", "2", "3", "4")

Name = Annotated[str, Query(max_length=16, pattern=r"^[a-z0-9](-?[a-z0-9])*$")]


@router.get("/terminal/{vm_id}")
async def show_terminal(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep, name: Name = "main"
) -> Response:
    """Show a terminal in a machine. Raises NoSuchMachine."""
    machine = await get_own_machine(services, caller.user_id, vm_id)
    nonce = secrets.token_urlsafe(16)
    names = TERMINALS if name in TERMINALS else (*TERMINALS, name)
    return page(
        request,
        "terminal/page.html",
        policy={"style-src": f"'self' 'nonce-{nonce}'"},
        machine=machine,
        runs=machine.status is MachineState.RUNNING,
        name=name,
        names=names,
        nonce=nonce,
    )
