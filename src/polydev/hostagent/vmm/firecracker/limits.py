"""Resource limits of a machine's VMM: device rates and cgroup limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024
_CPU_PERIOD_US = 100_000
_OVERHEAD_MIB = 96
"""For the VMM itself, which needs 5 MiB, and the kernel's buffers for it."""
_PAGE_TABLES = 128
"""Divisor of the guest's memory: the host's and the guest's page tables, doubled."""
_OVERHEAD_VCPUS = 0.25
_OWN_THREADS = 16


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Rate limits of each machine's devices; 0 means unlimited."""

    disk_mib_s: int = 256
    disk_operations_s: int = 20_000
    network_mib_s: int = 125
    """In each direction."""


@dataclass(frozen=True, slots=True)
class TokenBuckets:
    """A device's limits per second, with a burst of twice that."""

    bytes_s: int = 0
    operations_s: int = 0

    def body(self) -> dict[str, object] | None:
        """Return Firecracker's `RateLimiter`; None without limits."""
        buckets = {"bandwidth": self.bytes_s, "ops": self.operations_s}
        body: dict[str, object] = {
            name: {"size": rate, "one_time_burst": rate, "refill_time": 1000}
            for name, rate in buckets.items()
            if rate
        }
        return body or None


def disk_buckets(limits: RateLimits) -> TokenBuckets:
    """Return the limits of each drive."""
    return TokenBuckets(limits.disk_mib_s * _MIB, limits.disk_operations_s)


def network_buckets(limits: RateLimits) -> TokenBuckets:
    """Return the limits of each direction of the NIC."""
    return TokenBuckets(limits.network_mib_s * _MIB)


def memory_bytes(memory_mib: int) -> int:
    """Return `memory.max` for a guest of this size, without a snapshot."""
    return (memory_mib + memory_mib // _PAGE_TABLES + _OVERHEAD_MIB) * _MIB


def cpu_max(vcpus: int) -> str:
    """Return `cpu.max`: the vCPUs, plus a little for devices."""
    return f"{round((vcpus + _OVERHEAD_VCPUS) * _CPU_PERIOD_US)} {_CPU_PERIOD_US}"


def pids_max(vcpus: int) -> int:
    """Return `pids.max`: a thread for each vCPU, plus the VMM's own."""
    return vcpus + _OWN_THREADS
