"""Configuration of a new Firecracker process, in the order that its API requires.

All paths are inside the jail. ACPI announces serial line, drives and NIC to the guest as
virtio-mmio devices; drives appear in this order: /dev/vda, /dev/vdb, /dev/vdc (docs/machines.md).
"""

from __future__ import annotations

from pathlib import Path

from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.firecracker import ipc, vsock
from polydev.hostagent.vmm.firecracker.api import Api
from polydev.hostagent.vmm.firecracker.jail.jail import JailFile
from polydev.hostagent.vmm.firecracker.limits import RateLimits, disk_buckets, network_buckets

INTERFACE = "lan"
LAYOUT = 1
"""Increase when the set of devices changes: snapshots of another layout do not fit."""
_KERNEL, _INITRAMFS = "kernel", "initramfs"
_ERRORS, _METRICS = "errors", "metrics"
_STATISTICS_EVERY_S = 5

KERNEL_LINE = (
    "console=ttyS0 quiet ipv6.disable=1 random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=1"
    # There is no power button: the guest shuts down by a reset through the keyboard controller.
    # phases.sh recognises Firecracker by this option.
    " reboot=k panic=-1 pci=off"
    # The keyboard controller has only Ctrl+Alt+Del: probing for more costs 0.1 s.
    " i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
)


def boot_files(boot: BootFiles, folder: Path) -> list[JailFile]:
    """List the files of any VMM: kernel, initramfs and the pipes of `ipc.py`."""
    return [
        JailFile(_KERNEL, boot.kernel, "guest kernel"),
        JailFile(_INITRAMFS, boot.initramfs, "initramfs"),
        JailFile(_ERRORS, folder / ipc.ERROR_FIFO, "pipe", writable=True),
        JailFile(_METRICS, folder / ipc.METRICS_FIFO, "pipe", writable=True),
    ]


def machine_files(spec: LaunchSpec) -> list[JailFile]:
    """List the files of a machine's VMM."""
    return [*boot_files(BootFiles(spec.kernel, spec.initramfs), spec.folder), *_drives(spec)]


async def set_outputs(api: Api) -> None:
    """Set log and metrics: the first requests, also before a snapshot is loaded."""
    await api.put_logger(f"/{_ERRORS}")
    await api.put_metrics(f"/{_METRICS}")


async def boot_source(api: Api, *, memory_mib: int, vcpus: int) -> None:
    """Set size and kernel: a guest with a console and nothing else."""
    await api.put_machine_config(vcpus=vcpus, memory_mib=memory_mib)
    await api.put_boot_source(f"/{_KERNEL}", f"/{_INITRAMFS}", KERNEL_LINE)


async def machine(api: Api, spec: LaunchSpec, rates: RateLimits) -> None:
    """Configure a complete machine without starting it."""
    await set_outputs(api)
    await boot_source(api, memory_mib=spec.memory_mib, vcpus=spec.vcpus)
    for drive in _drives(spec):
        await api.put_drive(
            drive.name, f"/{drive.name}", writable=drive.writable, buckets=disk_buckets(rates)
        )
    await api.put_network_interface(
        INTERFACE, tap=spec.tap, mac=spec.mac, buckets=network_buckets(rates)
    )
    await api.put_vsock(f"/{vsock.SOCKET}", vsock.GUEST_CID)
    await api.put_entropy()
    await api.put_balloon(amount_mib=0, statistics_every_s=_STATISTICS_EVERY_S)


def _drives(spec: LaunchSpec) -> list[JailFile]:
    return [
        JailFile("root", spec.root_image, "golden image"),
        JailFile("disk", spec.disk, "disk", writable=True),
        JailFile("config", spec.config_drive, "config drive"),
    ]
