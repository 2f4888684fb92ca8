"""The simulated driver.

Like a VMM it knows one machine's folder and config drive, and no network: a simulated machine is
never attached to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import Capabilities, LaunchSpec, Probe, SnapshotSource
from polydev.shared.errors import SnapshotUnusable, VmmFailed
from polydev.testing.simulated_vmm.machine import SimulatedVmm
from polydev.testing.simulated_vmm.memory import Memory
from polydev.testing.simulated_vmm.provisioner import ROOT, SimulatedProvisioner
from polydev.testing.simulated_vmm.simulation import Simulation


class SimulatedDriver:
    """Machines inside this process. They end with it: `adopt` never finds one."""

    capabilities = Capabilities(needs_images=False, host_memory=False, shares_process=True)

    def __init__(self, simulation: Simulation | None = None) -> None:
        self._simulation = simulation or Simulation()

    @property
    def name(self) -> str:
        return "simulated"

    @classmethod
    def from_settings(
        cls, settings: HostSettings, boot_files: Callable[[], BootFiles]
    ) -> SimulatedDriver:
        """Create the driver that POLYDEV_SIMULATION describes. Raises BadSettings."""
        return cls(Simulation.from_settings(settings))

    def provisioner(self, settings: HostSettings) -> SimulatedProvisioner:
        """Create the provisioner of simulated machines. Raises BadSettings."""
        return SimulatedProvisioner(settings)

    async def probe(self) -> Probe:
        return Probe(True, "none", "No guest runs: the host agent simulates every machine")

    async def launch(self, spec: LaunchSpec) -> SimulatedVmm:
        """Start a machine. Raises: VmmFailed for an invalid config drive."""
        try:
            memory = await run_in_thread_shielded(
                Memory.fresh, spec.folder / ROOT, spec.config_drive
            )
            config = await asyncio.to_thread(memory.config)
        except (OSError, ValueError, KeyError) as error:
            raise VmmFailed(f"{spec.vm_id} has an unreadable config drive: {error}") from error
        return SimulatedVmm(spec, config, memory, self._simulation)

    async def fingerprint(self, spec: LaunchSpec) -> str:
        return f"simulation: 1\nmemory: {spec.memory_mib} MiB\nprocessors: {spec.vcpus}\n"

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> SimulatedVmm:
        """Restore a saved machine, paused. Raises: SnapshotUnusable."""
        saved = b""
        while piece := await source.read():
            saved += piece
        memory = await run_in_thread_shielded(Memory.restored, spec.folder / ROOT, saved)
        try:
            config = await asyncio.to_thread(memory.config)
        except (OSError, ValueError, KeyError) as error:
            raise SnapshotUnusable(f"The simulated snapshot is invalid: {error}") from error
        return SimulatedVmm(spec, config, memory, self._simulation, is_restored=True)

    async def adopt(self, spec: LaunchSpec) -> None:
        return None

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        return ()
