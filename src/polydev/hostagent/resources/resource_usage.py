"""Resource usage of machines over time: CPU and memory of their VMMs.

It measures the VMM's process, which the guest cannot influence. The samples are bounded, and stay
in memory only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from polydev.shared.host_protocol import Usage, UsageSample

PERIOD_S = 5.0
RETENTION_S = 3600.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MachineSource(Protocol):
    """The machines to measure; see `MachineService`."""

    def vmm_pids(self) -> Mapping[str, int]: ...
    def known(self) -> Iterable[str]:
        """Return the ids of all machines, running or not; other samples are removed."""


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A process at one moment; `started` distinguishes it from another of the same pid."""

    pid: int
    started: int
    cpu_s: float
    memory_bytes: int


Read = Callable[[int], ProcessUsage | None]


def read_process(pid: int) -> ProcessUsage | None:
    """Measure a process; None if it does not exist. Source: proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # from the third on; the second may hold spaces
    user, system, started, pages = (int(fields[index]) for index in (11, 12, 19, 21))
    return ProcessUsage(pid, started, (user + system) / _TICKS_PER_S, pages * _PAGE_BYTES)


class UsageLog:
    """The samples of all machines of a host."""

    def __init__(
        self,
        machines: MachineSource,
        read: Read = read_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machines = machines
        self._read = read
        self._clock = clock
        self._samples: dict[str, deque[UsageSample]] = {}
        self._last: dict[str, tuple[float, ProcessUsage]] = {}

    async def run(self) -> None:
        """Measure all machines periodically, until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(PERIOD_S)

    async def sample(self) -> None:
        """Take a sample of each running machine; remove those of destroyed ones."""
        pids = dict(self._machines.vmm_pids())
        readings = await asyncio.to_thread(lambda: {p: self._read(p) for p in set(pids.values())})
        now_s, at = self._clock(), datetime.now(UTC)
        for vm_id, pid in pids.items():
            if (reading := readings[pid]) is not None:
                self._add(vm_id, reading, now_s, at)
        for gone in self._samples.keys() - set(self._machines.known()):
            del self._samples[gone]
        for gone in self._last.keys() - pids.keys():
            del self._last[gone]

    def usage(self, vm_id: str) -> Usage:
        """Return the samples of a machine, oldest first."""
        return Usage(period_s=PERIOD_S, samples=list(self._samples.get(vm_id, ())))

    def _add(self, vm_id: str, reading: ProcessUsage, now_s: float, at: datetime) -> None:
        before = self._last.get(vm_id)
        self._last[vm_id] = (now_s, reading)
        if before is None or before[1].started != reading.started or now_s <= before[0]:
            return  # CPU usage needs two readings of the same process
        cores = (reading.cpu_s - before[1].cpu_s) / (now_s - before[0])
        samples = self._samples.setdefault(vm_id, deque(maxlen=int(RETENTION_S / PERIOD_S)))
        samples.append(
            UsageSample(at=at, cpu=round(max(0.0, cores), 3), memory_bytes=reading.memory_bytes)
        )
