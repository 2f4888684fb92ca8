"""Observers of the hibernate and resume sagas: after a failure, the row follows the host.

A machine that cannot hibernate keeps running. A machine that cannot resume stays hibernated, with
its saved memory. The row records the reason.
"""

from __future__ import annotations

from contextlib import suppress

from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.store.queries.system import audit
from polydev.controller.workflows.engine.log_only_observer import LogOnlyObserver
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.machine_operations import (
    MachineOperations,
    resume_values,
    set_failed,
)
from polydev.shared.domain import MachineState, VmId, now
from polydev.shared.errors import PolydevError
from polydev.shared.host_protocol import HostMachineView

_VIA = "workflow"


class HibernationProgress(LogOnlyObserver):
    """Observer of the hibernate saga."""

    def __init__(self, operations: MachineOperations) -> None:
        self._operations = operations

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        if failure is None:
            return
        vm_id, view = await _at_host(self._operations, subject)
        async with self._operations.database.write() as connection:
            if view is not None and view.state is MachineState.HIBERNATED:
                await hibernation.set_hibernated(connection, vm_id, view.memory_on_disk_bytes)
            elif await hibernation.revert_to_running(connection, vm_id, failure.line(), now()):
                machine = await machines.get(connection, vm_id, None)
                cause = Actor.for_controller(_VIA, failure.line())
                await audit.record(connection, cause.entry("machine.stay-awake", machine))


class ResumeProgress(LogOnlyObserver):
    """Observer of the resume saga."""

    def __init__(self, operations: MachineOperations) -> None:
        self._operations = operations

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        if failure is None:
            return
        vm_id, view = await _at_host(self._operations, subject)
        async with self._operations.database.write() as connection:
            machine = await machines.find(connection, vm_id)
            if machine is None or machine.status is not MachineState.RESUMING:
                return
            if view is not None and view.state is MachineState.RUNNING:
                state, address, extra_columns = (
                    view.state,
                    view.ip_address,
                    resume_values(machine, view),
                )
                await machines.set_state(
                    connection, vm_id, state, address, extra_columns=extra_columns
                )
            elif view is None or view.state.keeps_saved_memory:
                await hibernation.revert_to_hibernated(connection, vm_id, failure.line())
                cause = Actor.for_controller(_VIA, failure.line())
                await audit.record(connection, cause.entry("machine.sleep-on", machine))
            else:
                await set_failed(connection, vm_id, failure)


async def _at_host(
    operations: MachineOperations, subject: str
) -> tuple[VmId, HostMachineView | None]:
    """Return a machine as its host reports it. None if the host does not answer."""
    vm_id = VmId(subject.partition("/")[0])
    with suppress(PolydevError):
        return vm_id, await operations.view_on_host(await operations.find(vm_id))
    return vm_id, None
