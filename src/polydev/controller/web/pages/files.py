"""`/files/{vmId}?path=`: the files of a person's machine.

The page is a frame; folders are drawn by the browser (`static/files.js`) from the API, so that a
name, which a machine chose, never becomes part of HTML.
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
    """The files of one machine. Raises NoSuchMachine."""
    machine = await get_own_machine(services, caller.user_id, vm_id)
    return page(
        request,
        "files.html",
        machine=machine,
        runs=machine.status.is_usable,
        wakes=machine.status is not MachineState.RUNNING,
        limit=services.file_limit_bytes,
    )
