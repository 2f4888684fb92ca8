"""QEMU's argument list for one machine. Pure: it opens and starts nothing.

Every file is passed as an open descriptor, so that the VMM needs no access to any folder. Source:
qemu-system-x86_64(1) of 7.2; docs/system/i386/microvm.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polydev.hostagent.vmm.contract import LaunchSpec

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"

_KERNEL_LINE = (
    "console=ttyS0 quiet panic=-1 ipv6.disable=1 random.trust_cpu=on"
    # The crypto self-tests take a tenth of the boot under emulation.
    " cryptomgr.notests 8250.nr_uarts=1"
)
MACHINE = (
    "microvm,acpi=on,rtc=on,pcie=off,usb=off,x-option-roms=off,dump-guest-core=off"
    # Keep the legacy timer and interrupt controller: on a loaded host the guest sometimes
    # calibrates its own timer wrongly, and these are its reference and fallback. Without them one
    # boot in fifty hung at its first sleep.
    ",pit=on,pic=on"
)
_GUEST_CHANNEL = "10.0.2.15"
INCOMING = ("-incoming", "defer")
"""Extra arguments: wait for migrated memory instead of booting (`migration.py`)."""
_TRANSLATION_MIB = 256, 512
"""Cache of translated code under emulation, for small and large machines.

QEMU would otherwise use up to 1 GiB of the host's memory for each.
"""
_LARGE_MIB = 1536
_OWN_MIB = 192
"""Twice the measured need: 25 MiB of its own, 50 MiB for the kernel image, page tables."""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """The accelerator of a guest, and what it needs."""

    name: str
    """`kvm` or `tcg`."""
    groups: tuple[int, ...] = ()
    """Groups that the VMM needs to use it."""
    tsc_khz: int | None = None
    """TSC frequency, which the guest cannot measure under emulation."""


@dataclass(frozen=True, slots=True)
class BootDescriptors:
    """Open descriptors that any guest needs; the last two are listening sockets."""

    kernel: int
    initramfs: int
    qmp: int
    console: int


@dataclass(frozen=True, slots=True)
class MachineDescriptors:
    """Open descriptors of one machine's drives and TAP."""

    root_image: int
    disk: int
    config_drive: int
    tap: int


def guest_arguments(
    name: str, memory_mib: int, vcpus: int, boot: BootDescriptors, acceleration: Acceleration
) -> list[str]:
    """Build the arguments of a guest with only a console, for the probe."""
    return [
        *("-name", f"guest={name}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", MACHINE),
        *_processor(acceleration, memory_mib),
        *("-smp", str(vcpus), "-m", str(memory_mib)),
        *("-kernel", _descriptor(boot.kernel), "-initrd", _descriptor(boot.initramfs)),
        *("-append", kernel_line(acceleration)),
        *("-chardev", f"socket,id=qmp,fd={boot.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={boot.console},server=on,wait=off"),
        *("-serial", "chardev:console"),
        *("-object", "rng-builtin,id=entropy"),
        *("-device", "virtio-rng-device,rng=entropy,max-bytes=4096,period=100"),
    ]  # fmt: skip


def machine_arguments(
    spec: LaunchSpec, boot: BootDescriptors, files: MachineDescriptors, acceleration: Acceleration
) -> list[str]:
    """Build the arguments of a complete machine.

    Drives and NICs appear in the guest in this order (docs/machines.md): QEMU assigns virtio-mmio
    slots from the last to the first and lists them to the guest in that order too. The first slots
    must stay free: a device there shares an interrupt that this machine has no use for, and the
    guest hangs.
    """
    return [
        *guest_arguments(spec.vm_id, spec.memory_mib, spec.vcpus, boot, acceleration),
        *_drive("root", files.root_image, writable=False),
        *_drive("disk", files.disk, writable=True),
        *_drive("config", files.config_drive, writable=False),
        *("-netdev", f"tap,id=lan,fd={files.tap}"),
        *("-device", f"virtio-net-device,netdev=lan,mac={spec.mac}"),
        # The VMM's own user-mode network: `restrict` lets the guest reach nothing through it.
        *("-netdev", "user,id=channel,restrict=on,ipv6=off,"
          f"hostfwd=tcp:127.0.0.1:{spec.channel_port}-{_GUEST_CHANNEL}:22"),
        *("-device", f"virtio-net-device,netdev=channel,mac={spec.channel_mac}"),
        # Memory that the guest frees is reported to the host. Last: it takes the last slot but one.
        *("-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"),
    ]  # fmt: skip


def overhead_mib(acceleration: Acceleration, memory_mib: int) -> int:
    """Return the most memory that QEMU may need besides the guest's."""
    return _OWN_MIB + (0 if acceleration.name == "kvm" else _translation_mib(memory_mib))


def _processor(acceleration: Acceleration, memory_mib: int) -> Sequence[str]:
    if acceleration.name == "kvm":
        return "-accel", "kvm", "-cpu", "host"
    return "-accel", f"tcg,thread=multi,tb-size={_translation_mib(memory_mib)}", "-cpu", "max"


def _translation_mib(memory_mib: int) -> int:
    return _TRANSLATION_MIB[memory_mib >= _LARGE_MIB]


def kernel_line(acceleration: Acceleration) -> str:
    """Build the guest kernel's command line."""
    if acceleration.tsc_khz is None:
        return _KERNEL_LINE
    # Without `reliable`, the guest's clocksource watchdog drops the TSC on a loaded host.
    return f"{_KERNEL_LINE} tsc_early_khz={acceleration.tsc_khz} tsc=reliable"


def _drive(name: str, descriptor: int, *, writable: bool) -> Sequence[str]:
    """Build a raw image drive; a full host is an I/O error in the guest, not a stopped machine."""
    path = _descriptor(descriptor)
    access = "read-only=off,discard=unmap" if writable else "read-only=on"
    report = ",werror=report,rerror=report" if writable else ""
    return (
        *("-blockdev", f"driver=file,node-name={name}-file,filename={path},{access}"),
        *("-blockdev", f"driver=raw,node-name={name},file={name}-file,{access}"),
        *("-device", f"virtio-blk-device,drive={name}{report}"),
    )


def _descriptor(number: int) -> str:
    return f"/proc/self/fd/{number}"
