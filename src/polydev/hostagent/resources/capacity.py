"""Capacity of this host for machines; the controller places machines by it.

The settings determine it, else the host's resources less a reserve. `/health` reports it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev import __version__
from polydev.hostagent.network.network_config import NetworkConfig
from polydev.hostagent.resources.memory_admission import MemoryAdmission, available_mib, total_mib
from polydev.hostagent.settings import HostSettings
from polydev.shared.host_protocol import Health, WarmView

_RESERVE_MIB = 1024
_RESERVE_SHARE = 0.1
"""Share of the host's memory for the host itself and the overhead of VMMs."""
_VCPUS_PER_CORE = 4
"""Machines are idle most of the time."""
_UNBOUNDED_MEMORY_MIB = 16 * 1024 * 1024
_UNBOUNDED_VCPUS = 100_000
"""For machines that take nothing of the host."""
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capacity:
    """The resources that all machines of this host share."""

    memory_mib: int
    """Includes the overcommitment."""
    vcpus: int
    max_machines: int
    disk: Path
    driver: str
    accelerator: str
    driver_version: str
    host_memory: bool
    """Machines take their memory from the host."""

    @classmethod
    def measure(
        cls,
        settings: HostSettings,
        *,
        driver: str,
        accelerator: str,
        driver_version: str,
        host_memory: bool,
    ) -> Capacity:
        """Compute it from the settings, the driver and the host. Blocks for a moment."""
        memory_mib = usable_memory_mib(total_mib()) if host_memory else _UNBOUNDED_MEMORY_MIB
        if settings.host_memory_mib is not None:
            memory_mib = settings.host_memory_mib
        vcpus = (os.cpu_count() or 1) * _VCPUS_PER_CORE if host_memory else _UNBOUNDED_VCPUS
        return cls(
            memory_mib=int(memory_mib * settings.memory_overcommit),
            vcpus=vcpus if settings.host_vcpus is None else settings.host_vcpus,
            max_machines=NetworkConfig.from_settings(settings).address_count,
            disk=settings.state_dir,
            driver=driver,
            accelerator=accelerator,
            driver_version=driver_version,
            host_memory=host_memory,
        )

    def admission(self, settings: HostSettings) -> MemoryAdmission:
        """Create the admission control that enforces this capacity."""
        measure = available_mib if self.host_memory else None
        return MemoryAdmission(self.memory_mib, settings.memory_overcommit, measure)

    async def health(self, warm: WarmView) -> Health:
        """Report the capacity and the status of the agent."""
        disk = await asyncio.to_thread(shutil.disk_usage, self.disk)
        return Health(
            version=__version__,
            driver=self.driver,
            accelerator=self.accelerator,
            driver_version=self.driver_version,
            memory_mib=self.memory_mib,
            vcpus=self.vcpus,
            max_machines=self.max_machines,
            disk_free_mib=disk.free // _MIB,
            warm=warm,
        )


def usable_memory_mib(total_mib: int) -> int:
    """Return the part of a host's memory that its machines may use."""
    return max(total_mib - max(_RESERVE_MIB, int(total_mib * _RESERVE_SHARE)), 0)
