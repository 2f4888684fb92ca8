"""The way to a person's machine: whose it is, and the host that it runs on.

The routers of terminals, files, programs and usage use it; what is somebody else's is not there.
Who only looks (`own_machine`, `host_of_own`) lets a machine sleep; who reaches into one (`Reached`)
has it woken.
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
from polydev.shared.host_client import Host


async def get_own_machine(services: Services, user_id: UserId, vm_id: str) -> Machine:
    """A person's machine. Raises NoSuchMachine."""
    async with services.database.read(user_id) as connection:
        return await machines.get(connection, VmId(vm_id), user_id)


async def get_own_host(services: Services, user_id: UserId, vm_id: str) -> Host:
    """The host of a person's machine. Raises NoSuchMachine, HostUnreachable."""
    return services.hosts.of((await get_own_machine(services, user_id, vm_id)).host_id)


@dataclass(frozen=True, slots=True)
class MachineAccess:
    """A person's own machine that they reach into, for a reason in words: `a terminal`."""

    services: Services
    caller: Caller
    vm_id: VmId
    reason: str

    @property
    def resume_on_use(self) -> ResumeOnUse:
        return self.services.resume_on_use

    async def running_host(self, waits: Callable[[], None] = lambda: None) -> Host:
        """Its host, once the machine runs; `waits` is told if that takes time.

        Raises: NoSuchMachine, and what `ResumeOnUse.ensure_running` raises.
        """
        await get_own_machine(self.services, self.caller.user_id, self.vm_id)
        cause = Actor.for_caller(self.caller, self.reason)
        machine = await self.resume_on_use.ensure_running(cause, self.vm_id, waits)
        return self.services.hosts.of(machine.host_id)

    async def current_host(self) -> Host:
        """Its host, whether the machine runs or not. Raises: NoSuchMachine."""
        return await get_own_host(self.services, self.caller.user_id, self.vm_id)
