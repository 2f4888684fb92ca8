"""`/files/{vmId}?path=`: files of a user's machine.

The browser (`static/files/`) lists folders from the API, so that names chosen by a machine never
become part of the HTML.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import ServicesDep
from polydev.controller.api.routes.machines.machine_access import get_own_machine
from polydev.controller.web.rendering.render import Signed, page
from polydev.shared.domain import MachineState

router = APIRouter(include_in_schema=False)


@router.get("/files/{vm_id}")
async def show_files(
    request: Request, vm_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """Show the files of a machine. Raises NoSuchMachine."""
    machine = await get_own_machine(services, caller.user_id, vm_id)
    return page(
        request,
        "files/page.html",
        machine=machine,
        runs=machine.status.is_usable,
        wakes=machine.status is not MachineState.RUNNING,
        limit=services.file_limit_bytes,
    )
