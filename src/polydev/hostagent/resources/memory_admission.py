"""Admission control for memory: each machine passes it before it is created, started or resumed.

The controller places machines by its database, and cannot see what else runs on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from polydev.shared.errors import NoCapacity
from polydev.shared.hints import Hint

SPARE_MIB = 256
"""Memory that must remain for other programs once a machine uses all of its own."""
_MEMINFO = Path("/proc/meminfo")


class MemoryAdmission:
    """Admits the machines of one host."""

    def __init__(
        self,
        limit_mib: int | None,
        overcommit: float = 1.0,
        available_mib: Callable[[], int] | None = None,
    ) -> None:
        """`limit_mib` bounds all machines together, with overcommitment; None: no limit.

        `available_mib` measures the host's available memory; None: it does not count.
        """
        self._limit_mib = limit_mib
        self._overcommit = overcommit
        self._available_mib = available_mib
        self._claims: dict[str, int] = {}

    @contextmanager
    def admitted(
        self, vm_id: str, memory_mib: int, running: Mapping[str, int], held_mib: int = 0
    ) -> Iterator[None]:
        """Claim memory for a machine until it runs. Raises NoCapacity.

        `running` maps the other machines to their memory in MiB. `held_mib` is the memory that the
        machine already uses.
        """
        others = {**running, **self._claims}
        others.pop(vm_id, None)
        self._require_limit(vm_id, memory_mib, sum(others.values()))
        self._require_available(vm_id, max(memory_mib - held_mib, 0))
        self._claims[vm_id] = memory_mib
        try:
            yield
        finally:
            self._claims.pop(vm_id, None)

    def _require_limit(self, vm_id: str, memory_mib: int, taken_mib: int) -> None:
        if self._limit_mib is not None and taken_mib + memory_mib > self._limit_mib:
            raise NoCapacity(
                f"No memory for machine {vm_id}, which needs {memory_mib} MiB: of the"
                f" {self._limit_mib} MiB for machines of this host, {taken_mib} MiB are taken",
                hint=Hint.RAISE_HOST_MEMORY.text(),
            )

    def _require_available(self, vm_id: str, memory_mib: int) -> None:
        """Check the host itself: guests take memory only as they use it."""
        if self._available_mib is None:
            return
        needed_mib = int(memory_mib / max(self._overcommit, 1.0)) + SPARE_MIB
        available_mib = self._available_mib()
        if available_mib < needed_mib:
            raise NoCapacity(
                f"No memory for machine {vm_id}, which needs {memory_mib} MiB: this host is short"
                f" of it, with {available_mib} MiB left where {needed_mib} MiB should be",
                hint="Stop other programs on this host, or hibernate or stop machines",
            )


def available_mib() -> int:
    """Measure the memory that the host has available. Source: proc_meminfo(5)."""
    return _meminfo_mib("MemAvailable")


def total_mib() -> int:
    """Return the host's total memory."""
    return _meminfo_mib("MemTotal")


def _meminfo_mib(name: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) // 1024
    return 0
