"""What a machine's VMM may have of its host: rates of its devices, and what its cgroup holds.

`configuration.py` gives Firecracker the rates, `jailer.py` and `cgroup.py` the rest. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024
_CPU_PERIOD_US = 100_000
_OVERHEAD_MIB = 96
"""Of the VMM itself: it needs 5 MiB, the kernel's buffers for it come on top."""
_PAGE_TABLES = 128
"""One part in so many of the guest's memory: the processor's tables and the guest's, twice over."""
_OVERHEAD_VCPUS = 0.25
_OWN_THREADS = 16


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What each machine's devices may do; 0 is as much as they can."""

    disk_mib_s: int = 256
    disk_operations_s: int = 20_000
    network_mib_s: int = 125
    """In each direction."""


@dataclass(frozen=True, slots=True)
class TokenBuckets:
    """A device's limits, as bytes and operations a second with twice as much at once."""

    bytes_s: int = 0
    operations_s: int = 0

    def body(self) -> dict[str, object] | None:
        """As Firecracker is told (`RateLimiter`); None when nothing is limited."""
        buckets = {"bandwidth": self.bytes_s, "ops": self.operations_s}
        body: dict[str, object] = {
            name: {"size": rate, "one_time_burst": rate, "refill_time": 1000}
            for name, rate in buckets.items()
            if rate
        }
        return body or None


def disk_buckets(limits: RateLimits) -> TokenBuckets:
    """Of each drive."""
    return TokenBuckets(limits.disk_mib_s * _MIB, limits.disk_operations_s)


def network_buckets(limits: RateLimits) -> TokenBuckets:
    """Of each direction of the NIC."""
    return TokenBuckets(limits.network_mib_s * _MIB)


def memory_bytes(memory_mib: int) -> int:
    """`memory.max` of a VMM whose guest has so much. A snapshot of it comes on top."""
    return (memory_mib + memory_mib // _PAGE_TABLES + _OVERHEAD_MIB) * _MIB


def cpu_max(vcpus: int) -> str:
    """`cpu.max`: what its processors can use, and a little for its devices."""
    return f"{round((vcpus + _OVERHEAD_VCPUS) * _CPU_PERIOD_US)} {_CPU_PERIOD_US}"


def pids_max(vcpus: int) -> int:
    """`pids.max`: a thread for each processor, and those of the VMM."""
    return vcpus + _OWN_THREADS
