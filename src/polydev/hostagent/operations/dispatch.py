"""Dispatch an operation to the method of the machine service that performs it."""

from __future__ import annotations

from polydev.hostagent.machines.service import MachineService
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    ForgetMachine,
    HibernateMachine,
    HostMachineView,
    Operation,
    RemoveFiles,
    ResumeMachine,
    StartMachine,
    StopMachine,
    WriteFiles,
)


async def perform(machines: MachineService, operation: Operation) -> HostMachineView | None:
    """Perform an operation; return the machine if it still exists."""
    view: HostMachineView | None = None
    match operation:
        case CreateMachine():
            view = await machines.create(operation)
        case StopMachine():
            view = await machines.stop(operation.vm_id)
        case HibernateMachine():
            view = await machines.hibernate(operation.vm_id)
        case StartMachine() | ResumeMachine():
            view = await machines.start(operation.vm_id, operation.ready_timeout_s)
        case WriteFiles():
            view = await machines.write_files(operation)
        case RemoveFiles():
            view = await machines.remove_files(operation)
        case DestroyMachine():
            await machines.destroy(operation.vm_id)
        case ForgetMachine():
            await machines.forget(operation.vm_id)
    return view
