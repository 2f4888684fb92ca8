"""How the workflows of sleep and waking end when they fail: the machine is left as its host has it.

`machine_requests.py` gives them to those two sagas. Who cannot sleep runs on, and who cannot wake
sleeps on, with what was in its memory; the row says why.
"""

from __future__ import annotations

from contextlib import suppress

from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.store.queries.system import audit
from polydev.controller.workflows.engine.log_only_observer import Unattended
from polydev.controller.workflows.machines.actor import Cause
from polydev.controller.workflows.machines.machines import Machines, set_failed, woken_by
from polydev.shared.domain import MachineState, VmId, now
from polydev.shared.errors import PolydevError
from polydev.shared.host_protocol import MachineView

_VIA = "workflow"


class SleepNotes(Unattended):
    """Of a machine that was to sleep."""

    def __init__(self, means: Machines) -> None:
        self._means = means

    async def over(self, subject: str, failure: PolydevError | None) -> None:
        if failure is None:
            return
        vm_id, view = await _at_host(self._means, subject)
        async with self._means.database.write() as connection:
            if view is not None and view.state is MachineState.HIBERNATED:
                await hibernation.set_hibernated(connection, vm_id, view.memory_on_disk_bytes)
            elif await hibernation.revert_to_running(connection, vm_id, failure.line(), now()):
                machine = await machines.get(connection, vm_id, None)
                cause = Cause.of_controller(_VIA, failure.line())
                await audit.record(connection, cause.entry("machine.stay-awake", machine))


class WakeNotes(Unattended):
    """Of a machine that was to wake."""

    def __init__(self, means: Machines) -> None:
        self._means = means

    async def over(self, subject: str, failure: PolydevError | None) -> None:
        if failure is None:
            return
        vm_id, view = await _at_host(self._means, subject)
        async with self._means.database.write() as connection:
            machine = await machines.find(connection, vm_id)
            if machine is None or machine.status is not MachineState.RESUMING:
                return
            if view is not None and view.state is MachineState.RUNNING:
                state, address, noting = view.state, view.ip_address, woken_by(machine, view)
                await machines.set_state(connection, vm_id, state, address, noting=noting)
            elif view is None or view.state.keeps_saved_memory:
                await hibernation.revert_to_hibernated(connection, vm_id, failure.line())
                cause = Cause.of_controller(_VIA, failure.line())
                await audit.record(connection, cause.entry("machine.sleep-on", machine))
            else:
                await set_failed(connection, vm_id, failure)


async def _at_host(means: Machines, subject: str) -> tuple[VmId, MachineView | None]:
    """A saga's machine as its host has it; None if that cannot be said now."""
    vm_id = VmId(subject.partition("/")[0])
    with suppress(PolydevError):
        return vm_id, await means.at_host(await means.find(vm_id))
    return vm_id, None
