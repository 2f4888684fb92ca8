"""Which machine has which address: leases that survive a restart of the agent.

`Network` owns one pool and calls it from one thread. The pool knows nothing of TAPs or rules. It
goes upward and starts over at the end, so that an address rests before another machine gets it.
"""

from __future__ import annotations

import json
from ipaddress import AddressValueError, IPv4Address

from polydev.hostagent.network.network_config import NetworkPlan
from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import NetworkFailed, NoCapacity


class AddressPool:
    """Leases by machine id, kept in one file that is replaced as a whole."""

    def __init__(self, plan: NetworkPlan) -> None:
        self._file = plan.state_dir / "leases.json"
        self._gateway = plan.gateway
        self._first = int(plan.first_address)
        self._last = int(plan.last_address)
        self._leases: dict[str, IPv4Address] = {}
        self._next = self._first

    def load(self) -> None:
        """Read the file, if there is one. Leases that no longer fit the network are dropped.

        Raises: NetworkFailed if the file is not what this class writes.
        """
        self._leases, self._next = {}, self._first
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return
        try:
            kept = json.loads(text)
            leases = {str(vm): IPv4Address(text) for vm, text in kept["leases"].items()}
            following = int(IPv4Address(kept["next"]))
        except (ValueError, KeyError, TypeError, AttributeError, AddressValueError) as error:
            raise NetworkFailed(
                f"{self._file} cannot be read: {error}",
                hint="Stop all machines of this host, then remove the file",
            ) from error
        self._leases = {vm: a for vm, a in leases.items() if self._first <= int(a) <= self._last}
        self._next = following if self._first <= following <= self._last else self._first

    def leases(self) -> dict[str, IPv4Address]:
        """All leases: vm_id -> address."""
        return dict(self._leases)

    def take(self, vm_id: str) -> IPv4Address:
        """The machine's address: the one it has, or the next free one. Raises NoCapacity."""
        if vm_id in self._leases:
            return self._leases[vm_id]
        address = self._free_address()
        following = int(address) + 1
        self._become(
            {**self._leases, vm_id: address},
            following if following <= self._last else self._first,
        )
        return address

    def rename(self, vm_id: str, new_vm_id: str) -> None:
        """Have a machine's address be that of another name, which has none. Does nothing if the
        machine has none."""
        if vm_id in self._leases:
            others = {name: a for name, a in self._leases.items() if name != vm_id}
            self._become({**others, new_vm_id: self._leases[vm_id]}, self._next)

    def release(self, *vm_ids: str) -> None:
        """Give back the addresses of machines; those that have none are passed over."""
        kept = {vm_id: a for vm_id, a in self._leases.items() if vm_id not in vm_ids}
        if len(kept) < len(self._leases):
            self._become(kept, self._next)

    def forget_if_empty(self) -> None:
        """Remove the file when no machine has an address any more."""
        if not self._leases:
            self._file.unlink(missing_ok=True)

    def _free_address(self) -> IPv4Address:
        size = self._last - self._first + 1
        taken = {int(address) for address in self._leases.values()} | {int(self._gateway)}
        for step in range(max(size, 0)):
            candidate = self._first + (self._next - self._first + step) % size
            if candidate not in taken:
                return IPv4Address(candidate)
        raise NoCapacity(
            f"All {len(self._leases)} addresses of the VM network are taken",
            hint="Destroy machines, or set a larger POLYDEV_SUBNET",
        )

    def _become(self, leases: dict[str, IPv4Address], following: int) -> None:
        """On disk first: what cannot be kept is not given."""
        kept = {
            "next": str(IPv4Address(following)),
            "leases": {vm_id: str(address) for vm_id, address in leases.items()},
        }
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(kept, indent=1).encode())
        self._leases, self._next = leases, following
