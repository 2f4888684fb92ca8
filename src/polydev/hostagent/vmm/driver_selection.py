"""Select the driver for the machines of this host: by name, or by probing.

Drivers are entry points, so that no module names a double. `auto` takes Firecracker if a guest runs
under it, else QEMU.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system.entry_points import DRIVERS, find
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import Capabilities, Driver, Probe
from polydev.hostagent.vmm.leftovers import end_leftovers
from polydev.shared.errors import BadSettings

log = logging.getLogger("polydev.hostagent")

_FIRST, _SECOND = _AUTO = ("firecracker", "qemu")


@dataclass(frozen=True, slots=True)
class SelectedDriver:
    """A driver, and the result of its probe."""

    driver: Driver
    probe: Probe


def capabilities_of(name: str) -> Capabilities:
    """Return what a value of POLYDEV_DRIVER requires; `auto` requires what any candidate does."""
    candidates = [_load(it).capabilities for it in (_AUTO if name == "auto" else (name,))]
    return Capabilities(
        needs_images=any(it.needs_images for it in candidates),
        host_memory=any(it.host_memory for it in candidates),
        shares_process=all(it.shares_process for it in candidates),
        channel_nic=any(it.channel_nic for it in candidates),
        programs={tool: package for it in candidates for tool, package in it.programs.items()},
    )


async def select(settings: HostSettings, boot_files: Callable[[], BootFiles]) -> SelectedDriver:
    """Select the driver that the settings ask for. Raises BadSettings.

    A driver whose probe fails is selected anyway: it still manages running machines, and creating a
    machine reports the missing requirement.
    """

    def create(name: str) -> Driver:
        return _load(name).from_settings(settings, boot_files)

    if settings.driver not in ("auto", *_AUTO):
        driver = await asyncio.to_thread(create, settings.driver)
        return SelectedDriver(driver, await driver.probe())
    firecracker, qemu = await asyncio.to_thread(lambda: (create(_FIRST), create(_SECOND)))
    driver, probe = await select_real(settings.driver, firecracker, qemu)
    if not probe.usable:
        log.warning("no machine can be started on this host: %s", probe.reason)
    return SelectedDriver(driver, probe)


async def select_real(wanted: str, firecracker: Driver, qemu: Driver) -> tuple[Driver, Probe]:
    """Select one of the two real drivers, and probe it.

    A driver cannot manage another driver's machines. `auto` keeps the driver with running
    machines. A driver that is named ends the other's machines: their disks would be used twice.
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
    driver, other = (qemu, firecracker) if wanted == _SECOND else (firecracker, qemu)
    if pids := await asyncio.to_thread(other.find_orphans, []):
        log.warning(
            "ending machines that run under %s: the settings name another driver", other.name
        )
        await end_leftovers(pids)
    return driver, await driver.probe()


def _load(name: str) -> type[Driver]:
    entry = find(DRIVERS).get(name)
    if entry is None:
        raise BadSettings(f"This installation of Polydev has no driver named {name}")
    driver: type[Driver] = entry.load()
    return driver
