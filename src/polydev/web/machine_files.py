"""`/files/{vmId}?path=`: the files of a person's machine.

The page is a frame; folders are drawn by the browser (`static/files.js`) from the API, so that a
name, which a machine chose, never becomes part of HTML.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from polydev.api.ids import Id
from polydev.api.own_machines import own_machine
from polydev.api.services import Reach
from polydev.domain import MachineState
from polydev.web.rendering import Signed, page
from polydev.workflows.waking import can_be_used

router = APIRouter(include_in_schema=False)


@router.get("/files/{vm_id}")
async def show_files(request: Request, vm_id: Id, caller: Signed, services: Reach) -> Response:
    """The files of one machine. Raises NoSuchMachine."""
    machine = await own_machine(services, caller.user_id, vm_id)
    return page(
        request,
        "files.html",
        machine=machine,
        runs=can_be_used(machine),
        wakes=machine.status is not MachineState.RUNNING,
        limit=services.file_limit_bytes,
    )
