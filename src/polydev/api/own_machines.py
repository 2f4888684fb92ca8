"""The way to a person's machine: whose it is, and the host that it runs on.

The routers of terminals, files and usage use it; what is somebody else's is not there.
"""

from __future__ import annotations

from polydev.api.services import Services
from polydev.domain import Machine, PersonId, VmId
from polydev.hosts import Host
from polydev.store import machines


async def own_machine(services: Services, user_id: PersonId, vm_id: str) -> Machine:
    """A person's machine. Raises NoSuchMachine."""
    async with services.database.read(user_id) as connection:
        return await machines.get(connection, VmId(vm_id), user_id)


async def host_of_own(services: Services, user_id: PersonId, vm_id: str) -> Host:
    """The host of a person's machine. Raises NoSuchMachine, HostUnreachable."""
    return services.hosts.of((await own_machine(services, user_id, vm_id)).host_id)
