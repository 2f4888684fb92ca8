"""Claiming room for machines: hosts and rows are read, and the claim is written, under one lock.

What a machine takes of its host is told by its row alone (`store/capacity.py`), so a claim is
nothing but the row's own host and state, written in the transaction that looked. On SQLite writers
take turns; on PostgreSQL `look` holds a lock until the transaction ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement.fleet import Fleet, Resources
from polydev.controller.store.engine import locks
from polydev.controller.store.queries.machines import capacity, hosts, machines
from polydev.shared.domain import HostId, HostState, Machine, MachineState, VmHost, VmId, now
from polydev.shared.errors import HostUnreachable, NoCapacity
from polydev.shared.hints import Hint

_LOCK = "placement"


@dataclass(frozen=True, slots=True)
class Placement:
    """Claims; each method must run in a worker's writing transaction."""

    unseen_limit_s: float
    dead_limit_s: float

    async def load_fleet(self, connection: AsyncConnection) -> Fleet:
        """The fleet as it is, and will be until this transaction ends."""
        await lock_placement(connection)
        taken = {
            host_id: Resources(memory_mib, vcpus, count)
            for host_id, (memory_mib, vcpus, count) in (
                await capacity.get_taken_by_host(connection)
            ).items()
        }
        return Fleet.from_rows(await hosts.list_all(connection), taken, now(), self.unseen_limit_s)

    async def place(self, connection: AsyncConnection, machine: Machine) -> Machine:
        """Give a new machine a host, and write its row. Raises NoCapacity."""
        fleet, needs = await self.load_fleet(connection), Resources.for_machine(machine.size)
        host_id = fleet.choose(needs)
        if host_id is None:
            raise fleet.no_capacity(needs)
        placed = replace(machine, host_id=host_id)
        await machines.insert_if_absent(connection, placed)
        return placed

    async def claim_start(self, connection: AsyncConnection, machine: Machine) -> None:
        """Claim room for a machine at rest where its disk is; it is `resuming` from then on.

        Raises: NoCapacity, HostUnreachable.
        """
        fleet, needs = (
            await self.load_fleet(connection),
            Resources.for_machine(machine.size, new=False),
        )
        self.require_capacity(fleet, machine, needs)
        await machines.set_state(connection, machine.vm_id, MachineState.RESUMING)

    def require_capacity(self, fleet: Fleet, machine: Machine, needs: Resources) -> HostId:
        """The machine's host, if it has that room now. Raises: NoCapacity, HostUnreachable."""
        host_id = machine.host_id
        host = None if host_id is None else fleet.hosts.get(host_id)
        if host_id is None or host is None:
            raise NoCapacity(
                f"The disk of machine {machine.vm_id} is on no host that is known",
                hint="Destroy the machine, and make another",
            )
        if not fleet.fits(host_id, needs):
            raise _cannot_start_error(fleet, host, machine, needs)
        return host_id

    async def move_from_dead_host(self, connection: AsyncConnection, vm_id: VmId) -> Machine | None:
        """Give a machine that nobody relies on yet another host if its own is dead, or None if it
        is not, or no other has room. It is to be made anew there."""
        fleet = await self.load_fleet(connection)
        machine = await machines.find(connection, vm_id)
        if machine is None or machine.host_id is None or not machine.status.holds_memory:
            return None
        if not self.is_host_dead(fleet.hosts.get(machine.host_id)):
            return None
        host_id = fleet.choose(Resources.for_machine(machine.size))
        if host_id is None or host_id == machine.host_id:
            return None
        await machines.move_to_host(connection, vm_id, host_id)
        return replace(machine, host_id=host_id, status=MachineState.CREATING)

    def is_host_dead(self, host: VmHost | None) -> bool:
        """Whether a host has not answered for too long for anybody to wait for it."""
        if host is None or host.seen_at is None:
            return True
        return (now() - host.seen_at).total_seconds() > self.dead_limit_s


async def lock_placement(connection: AsyncConnection) -> None:
    """Keep what machines take of hosts as it is until this transaction ends: whoever changes a
    machine's host or state by what they read holds this lock."""
    await locks.acquire(connection, _LOCK)


def _cannot_start_error(
    fleet: Fleet, host: VmHost, machine: Machine, needs: Resources
) -> NoCapacity | HostUnreachable:
    where = f"machine {machine.vm_id}, whose disk is on the host {host.host_id}"
    if host.seen_at is None or host.seen_at < fleet.seen_since:
        return HostUnreachable(f"The host of {where}, does not answer", hint=Hint.RUN_DOCTOR.text())
    if host.state is HostState.DRAINING:
        return NoCapacity(
            f"No machine is started on the host {host.host_id}, which is being emptied: {where}",
            hint="Wait until it takes machines again, or destroy the machine and make another",
        )
    free = fleet.free(host.host_id)
    return NoCapacity(
        f"No room for {where}: it takes {needs}, and {max(free.memory_mib, 0)} MiB and "
        f"{max(free.vcpus, 0)} are free there",
        hint="Try again later, or stop or destroy machines that nobody needs",
    )
