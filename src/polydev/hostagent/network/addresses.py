"""Address leases of machines, which survive a restart of the agent.

`Network` owns one pool and calls it from one thread. The pool knows no TAPs or rules. It hands
addresses out in ascending order and wraps around, so that a released address rests before reuse.
"""

from __future__ import annotations

import json
from ipaddress import AddressValueError, IPv4Address

from polydev.hostagent.network.network_config import NetworkConfig
from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import NetworkFailed, NoCapacity
from polydev.shared.hints import Hint


class AddressPool:
    """Leases by machine id, stored in one file that is replaced as a whole."""

    def __init__(self, config: NetworkConfig) -> None:
        self._file = config.state_dir / "leases.json"
        self._gateway = config.gateway
        self._first = int(config.first_address)
        self._last = int(config.last_address)
        self._leases: dict[str, IPv4Address] = {}
        self._next = self._first

    def load(self) -> None:
        """Read the file, if it exists; drop leases outside of the network.

        Raises: NetworkFailed if the file is invalid.
        """
        self._leases, self._next = {}, self._first
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return
        try:
            stored = json.loads(text)
            leases = {str(vm): IPv4Address(text) for vm, text in stored["leases"].items()}
            following = int(IPv4Address(stored["next"]))
        except (ValueError, KeyError, TypeError, AttributeError, AddressValueError) as error:
            raise NetworkFailed(
                f"{self._file} is not readable: {error}",
                hint="Stop all machines of this host, then remove the file",
            ) from error
        self._leases = {vm: a for vm, a in leases.items() if self._first <= int(a) <= self._last}
        self._next = following if self._first <= following <= self._last else self._first

    def leases(self) -> dict[str, IPv4Address]:
        """Return all leases: vm_id -> address."""
        return dict(self._leases)

    def lease(self, vm_id: str) -> IPv4Address:
        """Return the machine's address, or lease the next free one. Raises: NoCapacity."""
        if vm_id in self._leases:
            return self._leases[vm_id]
        address = self._free_address()
        following = int(address) + 1
        self._save(
            {**self._leases, vm_id: address},
            following if following <= self._last else self._first,
        )
        return address

    def rename(self, vm_id: str, new_vm_id: str) -> None:
        """Move a lease to a new machine id, which has none. Does nothing without a lease."""
        if vm_id in self._leases:
            others = {name: a for name, a in self._leases.items() if name != vm_id}
            self._save({**others, new_vm_id: self._leases[vm_id]}, self._next)

    def release(self, *vm_ids: str) -> None:
        """Release the addresses of machines; ids without a lease are ignored."""
        stored = {vm_id: a for vm_id, a in self._leases.items() if vm_id not in vm_ids}
        if len(stored) < len(self._leases):
            self._save(stored, self._next)

    def remove_file_if_empty(self) -> None:
        """Remove the file once no machine has an address."""
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
            f"All {len(self._leases)} addresses of the VM network are in use",
            hint=Hint.SET_SUBNET.text(),
        )

    def _save(self, leases: dict[str, IPv4Address], following: int) -> None:
        """Write to disk first: a lease that cannot be stored is not handed out."""
        stored = {
            "next": str(IPv4Address(following)),
            "leases": {vm_id: str(address) for vm_id, address in leases.items()},
        }
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(stored, indent=1).encode())
        self._leases, self._next = leases, following
