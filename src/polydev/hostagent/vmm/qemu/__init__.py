"""QEMU's `microvm` machine behind the driver contract: KVM where it works, else emulation."""

from polydev.hostagent.vmm.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
