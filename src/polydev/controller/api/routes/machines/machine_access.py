"""Find a user's machine and its host; resume it if needed.

Machines of other users are treated as missing. Reading (`get_own_machine`, `get_own_host`) leaves a
hibernated machine alone; using one (`MachineAccess`) resumes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polydev.controller.access import Caller
from polydev.controller.api.http.services import Services
from polydev.controller.store.queries.machines import machines
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.resume_on_use import ResumeOnUse
from polydev.shared.domain import Machine, UserId, VmId
from polydev.shared.host_client import HostClient


async def get_own_machine(services: Services, user_id: UserId, vm_id: str) -> Machine:
    """Return a user's machine. Raises NoSuchMachine."""
    async with services.database.read(user_id) as connection:
        return await machines.get(connection, VmId(vm_id), user_id)


async def get_own_host(services: Services, user_id: UserId, vm_id: str) -> HostClient:
    """Return the host of a user's machine. Raises NoSuchMachine, HostUnreachable."""
    return services.hosts.client((await get_own_machine(services, user_id, vm_id)).host_id)


@dataclass(frozen=True, slots=True)
class MachineAccess:
    """A user's machine in use, with the reason as text: `a terminal`."""

    services: Services
    caller: Caller
    vm_id: VmId
    reason: str

    @property
    def resume_on_use(self) -> ResumeOnUse:
        return self.services.resume_on_use

    async def running_host(self, waits: Callable[[], None] = lambda: None) -> HostClient:
        """Return its host once the machine runs.

        Call `waits` if it must resume first.

        Raises: NoSuchMachine, and what `ResumeOnUse.ensure_running` raises.
        """
        await get_own_machine(self.services, self.caller.user_id, self.vm_id)
        actor = Actor.for_caller(self.caller, self.reason)
        machine = await self.resume_on_use.ensure_running(actor, self.vm_id, waits)
        return self.services.hosts.client(machine.host_id)

    async def current_host(self) -> HostClient:
        """Return its host, whether the machine runs or not. Raises: NoSuchMachine."""
        return await get_own_host(self.services, self.caller.user_id, self.vm_id)
