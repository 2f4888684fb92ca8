"""Whether this host has the memory for one more running machine: its own word, asked at each start.

The controller places machines by its rows; what else runs on the host it cannot see. `machines.py`
asks here before it creates, starts or wakes one. It knows no machine but by id and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from polydev.shared.errors import NoCapacity
from polydev.shared.hints import Hint

SPARE_MIB = 256
"""What must be left for the host's other programs when a machine has all of its memory."""
_MEMINFO = Path("/proc/meminfo")


class MemoryAdmission:
    """Of one host's machines."""

    def __init__(
        self,
        limit_mib: int | None,
        overcommit: float = 1.0,
        available_mib: Callable[[], int] | None = None,
    ) -> None:
        """`limit_mib` is what machines may have together, overcommitment included; None: no limit.

        `available_mib` tells what the host could give right now; None: nobody looks.
        """
        self._limit_mib = limit_mib
        self._overcommit = overcommit
        self._available_mib = available_mib
        self._coming: dict[str, int] = {}

    @contextmanager
    def admitted(
        self, vm_id: str, memory_mib: int, running: Mapping[str, int], held_mib: int = 0
    ) -> Iterator[None]:
        """Keep room for a machine until it runs. `running` has what each of the others has, in MiB,
        `held_mib` is what it has of the host's memory already.

        Raises: NoCapacity.
        """
        others = {**running, **self._coming}
        others.pop(vm_id, None)
        self._require_limit(vm_id, memory_mib, sum(others.values()))
        self._require_available(vm_id, max(memory_mib - held_mib, 0))
        self._coming[vm_id] = memory_mib
        try:
            yield
        finally:
            self._coming.pop(vm_id, None)

    def _require_limit(self, vm_id: str, memory_mib: int, taken_mib: int) -> None:
        if self._limit_mib is not None and taken_mib + memory_mib > self._limit_mib:
            raise NoCapacity(
                f"No memory for machine {vm_id}, which needs {memory_mib} MiB: of the"
                f" {self._limit_mib} MiB for machines of this host, {taken_mib} MiB are taken",
                hint=Hint.RAISE_HOST_MEMORY.text(),
            )

    def _require_available(self, vm_id: str, memory_mib: int) -> None:
        """Guests take their memory as they use it; who overcommits counts on them not to."""
        if self._available_mib is None:
            return
        needed_mib = int(memory_mib / max(self._overcommit, 1.0)) + SPARE_MIB
        available_mib = self._available_mib()
        if available_mib < needed_mib:
            raise NoCapacity(
                f"No memory for machine {vm_id}, which needs {memory_mib} MiB: this host is short"
                f" of it, with {available_mib} MiB left where {needed_mib} MiB should be",
                hint="End other programs on this host, or hibernate or stop machines",
            )


def available_mib() -> int:
    """What programs could get without the host running short. Source: proc_meminfo(5)."""
    return _meminfo_mib("MemAvailable")


def total_mib() -> int:
    """The host's memory."""
    return _meminfo_mib("MemTotal")


def _meminfo_mib(name: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) // 1024
    return 0
