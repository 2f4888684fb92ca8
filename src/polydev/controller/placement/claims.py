"""Claims of host resources: read the fleet and write the claim under one lock.

A machine's row determines its use of the host (`store/queries/machines/capacity.py`). So a claim is
just the row's host and state, written in the transaction that read the fleet. SQLite runs one
writer at a time; on PostgreSQL `load_fleet` holds a lock until the transaction ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement.fleet import Fleet
from polydev.controller.store.engine import locks
from polydev.controller.store.queries.machines import capacity, hosts, machines
from polydev.shared.domain import (
    HostId,
    HostState,
    Machine,
    MachineState,
    Resources,
    VmHost,
    VmId,
    now,
)
from polydev.shared.errors import HostUnreachable, NoCapacity
from polydev.shared.hints import Hint

_LOCK = "placement"


@dataclass(frozen=True, slots=True)
class Placement:
    """Claims resources. Every method needs a writing transaction that bypasses row security."""

    unseen_limit_s: float
    dead_limit_s: float

    async def load_fleet(self, connection: AsyncConnection) -> Fleet:
        """Load the fleet and lock it until the transaction ends."""
        await lock_placement(connection)
        taken = await capacity.get_taken_by_host(connection)
        return Fleet.from_rows(await hosts.list_all(connection), taken, now(), self.unseen_limit_s)

    async def place(self, connection: AsyncConnection, machine: Machine) -> Machine:
        """Choose a host for a new machine, and insert its row. Raises NoCapacity."""
        fleet, needs = await self.load_fleet(connection), Resources.for_machine(machine.size)
        host_id = fleet.choose(needs)
        if host_id is None:
            raise fleet.no_capacity(needs)
        placed = replace(machine, host_id=host_id)
        await machines.insert_if_absent(connection, placed)
        return placed

    async def claim_start(self, connection: AsyncConnection, machine: Machine) -> None:
        """Claim resources on the host of a machine's disk, and set it to `resuming`.

        Raises: NoCapacity, HostUnreachable.
        """
        fleet, needs = (
            await self.load_fleet(connection),
            Resources.for_machine(machine.size, new=False),
        )
        self.require_capacity(fleet, machine, needs)
        await machines.set_state(connection, machine.vm_id, MachineState.RESUMING)

    def require_capacity(self, fleet: Fleet, machine: Machine, needs: Resources) -> HostId:
        """Return the machine's host if it has these resources free.

        Raises: NoCapacity, HostUnreachable.
        """
        host_id = machine.host_id
        host = None if host_id is None else fleet.hosts.get(host_id)
        if host_id is None or host is None:
            raise NoCapacity(
                f"The host of machine {machine.vm_id} is unknown",
                hint="Destroy the machine and create another",
            )
        if not fleet.fits(host_id, needs):
            raise _cannot_start_error(fleet, host, machine, needs)
        return host_id

    async def move_from_dead_host(self, connection: AsyncConnection, vm_id: VmId) -> Machine | None:
        """Assign a machine without user data to another host if its own is dead.

        Returns None if the host is alive or no other host has capacity. The caller recreates the
        machine.
        """
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
        """Check whether a host has been silent for longer than the limit."""
        if host is None or host.seen_at is None:
            return True
        return (now() - host.seen_at).total_seconds() > self.dead_limit_s


async def lock_placement(connection: AsyncConnection) -> None:
    """Lock all claims until the transaction ends.

    Hold this lock to change a machine's host or state depending on rows that were read.
    """
    await locks.acquire(connection, _LOCK)


def _cannot_start_error(
    fleet: Fleet, host: VmHost, machine: Machine, needs: Resources
) -> NoCapacity | HostUnreachable:
    where = f"machine {machine.vm_id}, whose disk is on host {host.host_id}"
    if host.seen_at is None or host.seen_at < fleet.seen_since:
        return HostUnreachable(
            f"Cannot start {where}: the host does not answer", hint=Hint.RUN_DOCTOR.text()
        )
    if host.state is HostState.DRAINING:
        return NoCapacity(
            f"Cannot start {where}: the host is draining",
            hint="Wait until the host is active again, or destroy the machine and create another",
        )
    free = fleet.free(host.host_id)
    return NoCapacity(
        f"No capacity for {where}: it needs {needs}, and {free.clamped()} are free",
        hint="Try again later, or stop or destroy unused machines",
    )
