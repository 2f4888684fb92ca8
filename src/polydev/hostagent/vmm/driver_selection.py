"""Which driver runs the machines of this host: named in the settings, or found by probing.

`__main__.py` asks once at start. `auto` is Firecracker if its probe saw a guest run, else QEMU.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines.context import Furnishing
from polydev.hostagent.machines.recovery import end_leftovers
from polydev.hostagent.provisioning.provisioning import GoldenFurnishing, SimulatedFurnishing
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.cgroups import Cgroups
from polydev.hostagent.vmm.contract import Driver, Probe
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.driver import FirecrackerDriver
from polydev.hostagent.vmm.firecracker.limits import RateLimits
from polydev.hostagent.vmm.qemu import QemuDriver
from polydev.shared.errors import BadSettings
from polydev.testing.simulated_vmm import SimulatedDriver, Simulation

log = logging.getLogger("polydev.hostagent")


@dataclass(frozen=True, slots=True)
class Choice:
    """A driver, what it can do here, and what its machines are furnished with."""

    driver: Driver
    probe: Probe
    furnishing: Furnishing


async def choose(settings: HostSettings) -> Choice:
    """The driver to use. Raises BadSettings.

    One whose probe fails is taken all the same: machines that run already can still be looked
    after, and making one says what is missing.
    """
    if settings.driver == "simulated":
        simulated = SimulatedDriver(_simulation(settings))
        return Choice(simulated, await simulated.probe(), SimulatedFurnishing(settings))
    images = ImageStore(settings.images_dir)
    cgroups = await asyncio.to_thread(Cgroups.create, settings.cgroup)
    driver, probe = await chosen(settings.driver, *_drivers(settings, images, cgroups))
    if not probe.usable:
        log.warning("no machine can be started on this host: %s", probe.reason)
    # Firecracker's channel is vsock: docs/machines.md, "Network devices".
    furnishing = GoldenFurnishing(settings, images, has_channel_nic=driver.name != "firecracker")
    return Choice(driver, probe, furnishing)


def _drivers(settings: HostSettings, images: ImageStore, cgroups: Cgroups) -> tuple[Driver, Driver]:
    """Firecracker's and QEMU's."""
    machines_dir, cache_dir = settings.state_dir / "machines", settings.state_dir / "cache"

    def boot_files() -> BootFiles:
        image = images.require("kernel")
        return BootFiles(image.kernel, image.initramfs)

    firecracker = FirecrackerDriver(
        machines_dir=machines_dir,
        cache_dir=cache_dir,
        boot_files=boot_files,
        binaries=lambda: Binaries.find(settings.firecracker, settings.jailer),
        rates=RateLimits(
            disk_mib_s=settings.disk_limit_mib_s,
            disk_operations_s=settings.disk_limit_operations_s,
            network_mib_s=settings.network_limit_mib_s,
        ),
        parent_cgroup=settings.cgroup,
    )
    qemu = QemuDriver(
        machines_dir=machines_dir, cache_dir=cache_dir, boot_files=boot_files, cgroups=cgroups
    )
    return firecracker, qemu


async def chosen(wanted: str, firecracker: Driver, qemu: Driver) -> tuple[Driver, Probe]:
    """The driver, and what it can do.

    Machines that run are not another driver's to look after: `auto` stays with theirs until they
    have ended; a driver that is named ends them, since their disks would be used twice.
    """
    if wanted == "auto":
        for driver in (firecracker, qemu):
            if await asyncio.to_thread(driver.find_orphans, []):
                probe = await driver.probe()
                reason = f"{probe.reason}; no other driver is tried while its machines run"
                return driver, replace(probe, reason=reason)
        first = await firecracker.probe()
        if first.usable:
            return firecracker, first
        second = await qemu.probe()
        reason = f"{second.reason}; not Firecracker: {first.reason}"
        return qemu, replace(second, reason=reason)
    driver, other = (qemu, firecracker) if wanted == "qemu" else (firecracker, qemu)
    if pids := await asyncio.to_thread(other.find_orphans, []):
        log.warning("ending machines that run under %s: the settings name another", other.name)
        await end_leftovers(pids)
    return driver, await driver.probe()


def _simulation(settings: HostSettings) -> Simulation:
    try:
        return TypeAdapter(Simulation).validate_python(settings.simulation)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadSettings(
            f"POLYDEV_SIMULATION is not usable: there is no `{where}` of that kind in a simulation",
            hint=f"There are: {', '.join(Simulation.__dataclass_fields__)}",
        ) from None
