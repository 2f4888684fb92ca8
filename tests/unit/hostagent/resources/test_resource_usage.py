"""Resource usage of machines, from readings of their processes."""

from __future__ import annotations

import asyncio
import os

from polydev.hostagent.resources import resource_usage
from polydev.hostagent.resources.resource_usage import ProcessUsage, UsageLog, read_process


class Machines:
    """Two machines; tests set which of them run."""

    def __init__(self) -> None:
        self.pids = {"vm-a": 1, "vm-b": 2}
        self.there = ["vm-a", "vm-b"]

    def vmm_pids(self) -> dict[str, int]:
        return self.pids

    def known(self) -> list[str]:
        return self.there


class Processes:
    """Readings that tests set."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = {1: 10.0, 2: 50.0}
        self.started = {1: 5, 2: 6}

    def read(self, pid: int) -> ProcessUsage | None:
        if pid not in self.cpu_s:
            return None
        return ProcessUsage(pid, self.started[pid], self.cpu_s[pid], 1000 * pid)

    def clock(self) -> float:
        return self.now_s


def create_usage_log() -> tuple[UsageLog, Machines, Processes]:
    machines, processes = Machines(), Processes()
    return UsageLog(machines, processes.read, processes.clock), machines, processes


async def test_sample_covers_the_time_since_the_previous_one() -> None:
    log, _, processes = create_usage_log()
    await log.sample()
    assert log.usage("vm-a").samples == []
    processes.now_s += 5
    processes.cpu_s = {1: 12.5, 2: 50.0}
    await log.sample()
    assert [(it.cpu, it.memory_bytes) for it in log.usage("vm-a").samples] == [(0.5, 1000)]
    assert [(it.cpu, it.memory_bytes) for it in log.usage("vm-b").samples] == [(0.0, 2000)]


async def test_another_process_of_the_same_pid_starts_over() -> None:
    log, _, processes = create_usage_log()
    await log.sample()
    processes.now_s, processes.started[1], processes.cpu_s[1] = 105.0, 999, 0.1
    await log.sample()
    assert log.usage("vm-a").samples == []
    processes.now_s, processes.cpu_s[1] = 110.0, 5.1
    await log.sample()
    assert [it.cpu for it in log.usage("vm-a").samples] == [1.0]


async def test_stopped_machine_keeps_its_samples_and_a_destroyed_one_does_not() -> None:
    log, machines, processes = create_usage_log()
    for _ in range(2):
        await log.sample()
        processes.now_s += 5
    machines.pids = {}
    await log.sample()
    assert len(log.usage("vm-a").samples) == 1
    machines.there = ["vm-b"]
    await log.sample()
    assert log.usage("vm-a").samples == []
    assert len(log.usage("vm-b").samples) == 1


async def test_samples_are_bounded() -> None:
    log, _, processes = create_usage_log()
    for _ in range(int(resource_usage.RETENTION_S / resource_usage.PERIOD_S) + 50):
        await log.sample()
        processes.now_s += 5
    assert len(log.usage("vm-a").samples) == resource_usage.RETENTION_S / resource_usage.PERIOD_S


async def test_busy_process_is_measured() -> None:
    first = await asyncio.to_thread(read_process, os.getpid())
    assert first is not None
    total = sum(number * number for number in range(3_000_000))
    second = await asyncio.to_thread(read_process, os.getpid())
    assert second is not None
    assert total
    assert second.cpu_s > first.cpu_s
    assert second.memory_bytes > 10_000_000
    assert second.started == first.started
    assert read_process(2**22 + 1) is None
