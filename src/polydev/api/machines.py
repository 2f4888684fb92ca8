"""`/api/vm/…`: machines."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse
from starlette.websockets import WebSocket

from polydev.api import problems, streams
from polydev.api.auth import After, Wait
from polydev.api.schemas import ActiveCli, CreateMachine, DestroyMachine, MachineView
from polydev.api.services import Reach, Reading, Services, UsingMachines, caller_of
from polydev.domain import MachineState, PersonId, Scope, VmId
from polydev.errors import NoSuchMachine, PolydevError
from polydev.store import machines

router = APIRouter(prefix="/api/vm", tags=["machines"])

MAX_TAIL_BYTES = 1024 * 1024


@router.post("/create", status_code=202)
async def create(asked: CreateMachine, caller: UsingMachines, services: Reach) -> MachineView:
    """Have a machine made."""
    user_id = caller.whom(asked.userId)
    return MachineView.of(await services.machines.create(caller, user_id, asked.vmType))


@router.post("/destroy", status_code=202)
async def destroy(asked: DestroyMachine, caller: UsingMachines, services: Reach) -> MachineView:
    """Have a machine destroyed, with its disk."""
    return MachineView.of(await services.machines.destroy(caller, VmId(asked.vmId)))


@router.get("/list")
async def every(caller: Reading, services: Reach) -> list[MachineView]:
    """The person's machines."""
    async with services.database.read() as connection:
        rows = await machines.of_person(connection, caller.user_id)
    return [MachineView.of(row) for row in rows]


@router.get("/active-cli")
async def active_cli(caller: Reading, services: Reach) -> ActiveCli:
    """The CLI machine that runs."""
    async with services.database.read() as connection:
        found = await machines.cli_of(connection, caller.user_id, MachineState.RUNNING)
    if found is None:
        raise NoSuchMachine("No active CLI VM", hint="`polydev connect codex` makes one")
    return ActiveCli(
        vmId=found.vm_id,
        ipAddress=found.ip_address,
        status=found.status,
        createdAt=found.created_at,
    )


@router.get("/{vm_id}")
async def machine(
    vm_id: str, caller: Reading, services: Reach, after: After = None, wait: Wait = 0
) -> MachineView:
    """A machine; with `after` and `wait`, as soon as it is no longer that version."""
    look = _look(services, caller.user_id, vm_id, also_gone=after is not None)
    if after is None:
        return await look()
    return await streams.when_changed(services.database, look, after, wait)


@router.get("/{vm_id}/console", response_class=PlainTextResponse)
async def console(
    vm_id: str,
    caller: Reading,
    services: Reach,
    tail_bytes: Annotated[int, Query(ge=1, le=MAX_TAIL_BYTES)] = 65536,
) -> str:
    """The end of what a machine printed on its console."""
    await _look(services, caller.user_id, vm_id)()
    return await services.host.console(vm_id, tail_bytes)


@router.websocket("/{vm_id}/exec")
async def execute(socket: WebSocket, vm_id: str, services: Reach) -> None:
    """Run a program in a machine."""
    try:
        caller = await caller_of(socket)
        caller.require(Scope.MACHINES)
        await _look(services, caller.user_id, vm_id)()
    except PolydevError as error:
        await socket.send_denial_response(problems.document(error))
        return
    await socket.accept()
    await streams.relay_program(socket, services.host, VmId(vm_id))


def _look(
    services: Services, user_id: PersonId, vm_id: str, *, also_gone: bool = False
) -> Callable[[], Coroutine[Any, Any, MachineView]]:
    """A person's machine; `also_gone`: even one that is destroyed, for who waits for that."""

    async def look() -> MachineView:
        async with services.database.read() as connection:
            if also_gone:
                found = await machines.find(connection, VmId(vm_id))
                if found is not None and found.user_id == user_id:
                    return MachineView.of(found)
            return MachineView.of(await machines.get(connection, VmId(vm_id), user_id))

    return look
