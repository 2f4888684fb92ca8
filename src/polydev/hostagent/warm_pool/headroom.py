"""Headroom of the host for the warm pool: available memory, and free disk.

The pool checks it before it builds a template, and while it does. All methods block.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev.shared.domain import MachineSize

_RESERVE_MIB = 1024
"""Available memory that must remain beside the machine that is saved."""
_RESERVE_DISK_MIB = 2048
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Headroom:
    """Checks the headroom of one host."""

    state_dir: Path
    meminfo: Path = _MEMINFO

    def shortage(self, shape: MachineSize) -> str:
        """Explain what is missing to build a template; empty if nothing is."""
        wanted = shape.memory_mib + _RESERVE_MIB
        if (free := self.available_mib()) < wanted:
            return f"{free} MiB of memory are available, {wanted} MiB are needed"
        # A template's memory compresses by an unknown factor.
        wanted_disk = shape.memory_mib + _RESERVE_DISK_MIB
        free_disk = shutil.disk_usage(self.state_dir).free // 2**20
        if free_disk < wanted_disk:
            return f"{free_disk} MiB of disk are free, {wanted_disk} MiB are needed"
        return ""

    def is_short(self) -> bool:
        """Return True if other machines need the memory that the pool uses."""
        return self.available_mib() < _RESERVE_MIB

    def available_mib(self) -> int:
        """Read the available memory. Source: proc_meminfo(5), MemAvailable in kB."""
        for line in self.meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) // 1024
        return 0
