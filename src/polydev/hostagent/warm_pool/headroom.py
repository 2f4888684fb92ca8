"""Whether the host has room to make a template: memory that nobody needs, and disk.

`warmth.py` asks before it makes one, and again while it does. All functions block.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.warm_pool.templates import Shape

_RESERVE_MIB = 1024
"""Of memory that is available, what stays so beside the machine that is saved."""
_RESERVE_DISK_MIB = 2048
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Headroom:
    """Of one host."""

    state_dir: Path
    meminfo: Path = _MEMINFO

    def lacks(self, shape: Shape) -> str:
        """What is missing to make a template, in words; empty if nothing is."""
        wanted = shape.memory_mib + _RESERVE_MIB
        if (free := self.available_mib()) < wanted:
            return f"{free} MiB of memory are available, {wanted} MiB are needed"
        # A template's memory is smaller than the machine's, but not by how much can be known.
        wanted_disk = shape.memory_mib + _RESERVE_DISK_MIB
        free_disk = shutil.disk_usage(self.state_dir).free // 2**20
        if free_disk < wanted_disk:
            return f"{free_disk} MiB of disk are free, {wanted_disk} MiB are needed"
        return ""

    def is_short(self) -> bool:
        """Whether others need the memory that a machine being saved has."""
        return self.available_mib() < _RESERVE_MIB

    def available_mib(self) -> int:
        """Source: proc_meminfo(5), MemAvailable in kB."""
        for line in self.meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) // 1024
        return 0
