"""The driver for QEMU's `microvm` machine: KVM if it works, else emulation."""

from polydev.hostagent.vmm.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
