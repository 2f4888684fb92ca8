"""Which driver runs the machines of this host: named in the settings, or found by probing.

`__main__.py` asks once at start. `auto` is the first driver whose probe saw a guest run.
"""

from __future__ import annotations

from dataclasses import dataclass

from polydev.errors import VmmFailed
from polydev.hostd.furnishing import GoldenFurnishing, SimulatedFurnishing
from polydev.hostd.images import ImageStore
from polydev.hostd.site import Furnishing
from polydev.hostd.vmm.qemu import QemuDriver
from polydev.hostd.vmm.qemu.probe import BootFiles
from polydev.hostd.vmm.simulated import SimulatedDriver
from polydev.hostd.vmm.vmm import Driver, Probe
from polydev.settings import HostSettings


@dataclass(frozen=True, slots=True)
class Choice:
    """A driver that works here, and what its machines are furnished with."""

    driver: Driver
    probe: Probe
    furnishing: Furnishing


async def choose(settings: HostSettings) -> Choice:
    """The driver to use. Raises VmmFailed when none works, MissingTool, BadSettings."""
    if settings.driver == "simulated":
        simulated = SimulatedDriver()
        return Choice(simulated, await simulated.probe(), SimulatedFurnishing(settings))
    images = ImageStore(settings.images_dir)
    furnishing = GoldenFurnishing(settings, images)
    qemu = QemuDriver(
        machines_dir=settings.state_dir / "machines",
        cache_dir=settings.state_dir / "cache",
        boot_files=lambda: _kernel(images),
    )
    probe = await qemu.probe()
    if not probe.usable:
        raise VmmFailed(
            f"No driver works on this host: {probe.reason}", hint="See `polydev doctor`"
        )
    return Choice(qemu, probe, furnishing)


def _kernel(images: ImageStore) -> BootFiles:
    image = images.require("kernel")
    return BootFiles(image.kernel, image.initramfs)
