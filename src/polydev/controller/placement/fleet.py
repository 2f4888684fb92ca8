"""Choice of a host for a machine.

Values only; `claims.py` loads them from rows. A host fits if it is active, answered lately, and has
memory, vCPUs, an address and some disk left. The host with the most free memory wins, so machines
spread; the name breaks ties.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from polydev.shared.domain import HostId, HostState, Resources, VmHost
from polydev.shared.errors import NoCapacity
from polydev.shared.hints import Hint

MIN_DISK_FREE_MIB = 512
"""A host with less free disk gets no new machine, since sparse disks grow."""


@dataclass(slots=True)
class Fleet:
    """All hosts, and what is taken of each. `reserve` changes only this value, not the rows."""

    hosts: dict[HostId, VmHost]
    taken: dict[HostId, Resources]
    seen_since: datetime
    """A host whose last answer is older gets no machines."""
    withheld: set[HostId] = field(default_factory=set)
    """Hosts that are held free for the session at the head of the queue."""

    @classmethod
    def from_rows(
        cls,
        hosts: Iterable[VmHost],
        taken: dict[HostId, Resources],
        at: datetime,
        unseen_limit_s: float,
    ) -> Fleet:
        """Build the fleet from rows, as of a point in time."""
        since = at - timedelta(seconds=unseen_limit_s)
        return cls({it.host_id: it for it in hosts}, dict(taken), since)

    def free(self, host_id: HostId) -> Resources:
        """Return what a host has left. Negative if its capacity shrank."""
        return self.hosts[host_id].capacity - self.taken.get(host_id, Resources())

    def is_open(self, host_id: HostId) -> bool:
        """Check whether the host accepts machines at all."""
        host = self.hosts.get(host_id)
        return (
            host is not None
            and host.state is HostState.ACTIVE
            and host.seen_at is not None
            and host.seen_at >= self.seen_since
            and host_id not in self.withheld
        )

    def fits(self, host_id: HostId, needs: Resources) -> bool:
        """Check whether the host has these resources free."""
        if not self.is_open(host_id) or not self.free(host_id).covers(needs):
            return False
        return not needs.machines or self.hosts[host_id].disk_free_mib >= MIN_DISK_FREE_MIB

    def choose(self, needs: Resources, prefer: HostId | None = None) -> HostId | None:
        """Choose a host for these resources: `prefer` if it fits, else the best, or None."""
        if prefer is not None and self.fits(prefer, needs):
            return prefer
        fitting = [host_id for host_id in self.hosts if self.fits(host_id, needs)]
        return min(fitting, key=lambda it: (-self.free(it).memory_mib, it), default=None)

    def choose_two(self, one: Resources, other: Resources) -> tuple[HostId, HostId] | None:
        """Choose hosts for two machines, the same one if possible. None if they do not fit."""
        together = self.choose(one + other)
        if together is not None:
            return together, together
        first = self.choose(one)
        second = None if first is None else self.with_reserved(first, one).choose(other)
        if first is not None and second is not None:
            return first, second
        second = self.choose(other)
        first = None if second is None else self.with_reserved(second, other).choose(one)
        return None if first is None or second is None else (first, second)

    def reserve(self, host_id: HostId, needs: Resources) -> None:
        """Count these resources as taken."""
        self.taken[host_id] = self.taken.get(host_id, Resources()) + needs

    def with_reserved(self, host_id: HostId, needs: Resources) -> Fleet:
        """Return a copy of the fleet with these resources taken."""
        taken = {**self.taken, host_id: self.taken.get(host_id, Resources()) + needs}
        return Fleet(self.hosts, taken, self.seen_since, self.withheld)

    def can_ever_fit(self, needs: Resources) -> bool:
        """Check whether some empty host is large enough. True if no host has answered yet."""
        known = [it for it in self.hosts.values() if it.seen_at is not None]
        return not known or any(it.capacity.covers(needs) for it in known)

    def no_capacity(self, needs: Resources) -> NoCapacity:
        """Build the error that names the demand and what each host has."""
        wanted = f"No host has capacity for a machine with {needs}"
        if not self.can_ever_fit(needs):
            largest = max((it.capacity for it in self.hosts.values()), key=lambda it: it.memory_mib)
            return NoCapacity(
                f"{wanted}: the largest host has {largest} in total",
                hint=Hint.USE_SMALLER_MACHINES.text(),
            )
        text = "; ".join(self._describe(host_id) for host_id in sorted(self.hosts))
        return NoCapacity(
            f"{wanted} now ({text or 'there is no host'})",
            hint="Try again later, or stop or destroy unused machines",
        )

    def _describe(self, host_id: HostId) -> str:
        host, free = self.hosts[host_id], self.free(host_id)
        if host.seen_at is None or host.seen_at < self.seen_since:
            return f"{host_id} does not answer"
        if host.state is not HostState.ACTIVE:
            return f"{host_id} is draining"
        if free.machines <= 0:
            return f"{host_id} has no free address"
        if host.disk_free_mib < MIN_DISK_FREE_MIB:
            return f"{host_id} has {host.disk_free_mib} MiB of free disk"
        return f"{host_id} has {free.clamped()} free"
