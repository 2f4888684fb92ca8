"""Which driver runs the machines of this host: named in the settings, or found by probing.

`__main__.py` asks once at start. `auto` is the first driver whose probe saw a guest run.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from polydev.errors import BadSettings
from polydev.hostd.furnishing import GoldenFurnishing, SimulatedFurnishing
from polydev.hostd.images import ImageStore
from polydev.hostd.site import Furnishing
from polydev.hostd.vmm.cgroups import Cgroups
from polydev.hostd.vmm.qemu import QemuDriver
from polydev.hostd.vmm.qemu.probe import BootFiles
from polydev.hostd.vmm.simulated import SimulatedDriver, Simulation
from polydev.hostd.vmm.vmm import Driver, Probe
from polydev.settings import HostSettings

log = logging.getLogger("polydev.hostd")


@dataclass(frozen=True, slots=True)
class Choice:
    """A driver, what it can do here, and what its machines are furnished with."""

    driver: Driver
    probe: Probe
    furnishing: Furnishing


async def choose(settings: HostSettings) -> Choice:
    """The driver to use. Raises MissingTool, BadSettings.

    One whose probe fails is taken all the same: machines that run already can still be looked
    after, and making one says what is missing.
    """
    if settings.driver == "simulated":
        simulated = SimulatedDriver(_simulation(settings))
        return Choice(simulated, await simulated.probe(), SimulatedFurnishing(settings))
    images = ImageStore(settings.images_dir)
    furnishing = GoldenFurnishing(settings, images)
    qemu = QemuDriver(
        machines_dir=settings.state_dir / "machines",
        cache_dir=settings.state_dir / "cache",
        boot_files=lambda: _kernel(images),
        cgroups=await asyncio.to_thread(Cgroups.made, settings.netns),
    )
    probe = await qemu.probe()
    if not probe.usable:
        log.warning("no machine can be started on this host: %s", probe.reason)
    return Choice(qemu, probe, furnishing)


def _kernel(images: ImageStore) -> BootFiles:
    image = images.require("kernel")
    return BootFiles(image.kernel, image.initramfs)


def _simulation(settings: HostSettings) -> Simulation:
    try:
        return TypeAdapter(Simulation).validate_python(settings.simulation)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadSettings(
            f"POLYDEV_SIMULATION is not usable: there is no `{where}` of that kind in a simulation",
            hint=f"There are: {', '.join(Simulation.__dataclass_fields__)}",
        ) from None
