"""From an operation's words to the method that does it.

`operations.py` has every operation performed here.
"""

from __future__ import annotations

from polydev.hostagent.machines.service import MachineService
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    ForgetMachine,
    HibernateMachine,
    MachineView,
    Operation,
    RemoveFiles,
    ResumeMachine,
    StartMachine,
    StopMachine,
    WriteFiles,
)


async def perform(machines: MachineService, operation: Operation) -> MachineView | None:
    """Carry out an operation. Returns what it left; raises what errors.py has."""
    view: MachineView | None = None
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
