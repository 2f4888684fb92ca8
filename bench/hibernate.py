"""What sleeping gains and costs: waking against making, memory freed, bytes on disk, time to sleep.

Both sides of the comparison end when the host agent says that the machine's channel answers. The
machine that sleeps has been used as little as the one that is made: it holds what a boot leaves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

from bench.agent import BenchAgent
from bench.measure import Comparison, compare, own_mib, timed
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    MachineView,
    Operation,
    ResumeMachine,
)

MEMORY_MIB = 512
_LIMIT_S = 120.0
_MIB = 1024 * 1024


@dataclass
class Slept:
    """What each sleep was seen to cost and to free."""

    freed_mib: list[float] = field(default_factory=list)
    on_disk_mib: list[float] = field(default_factory=list)
    to_sleep_s: list[float] = field(default_factory=list)

    def rows(self) -> list[str]:
        """Medians, for people."""
        return [
            f"{'hibernate: memory of the host freed':<44} {median(self.freed_mib):>9.0f} MiB",
            f"{'hibernate: bytes on disk':<44} {median(self.on_disk_mib):>9.1f} MiB",
            f"{'hibernate: until it sleeps':<44} {median(self.to_sleep_s):>9.3f} s",
        ]


async def hibernate(agent: BenchAgent, rounds: int) -> tuple[Comparison, Slept]:
    """Resume to answering against cold create to answering, alternating."""
    sleeper = await run(agent, made())
    slept = Slept()

    async def resume() -> float:
        running = await agent.host.machine(sleeper.vm_id)
        freed = own_mib(running.pid)
        began = time.monotonic()
        asleep = await run(agent, HibernateMachine(vm_id=sleeper.vm_id))
        slept.to_sleep_s.append(time.monotonic() - began)
        slept.freed_mib.append(freed)
        slept.on_disk_mib.append(asleep.memory_on_disk_bytes / _MIB)
        waking = ResumeMachine(vm_id=sleeper.vm_id, ready_timeout_s=_LIMIT_S)
        seconds = await timed(lambda: run(agent, waking))
        awake = await agent.host.machine(sleeper.vm_id)
        assert awake.wake is not None
        assert awake.wake.how == "resumed", awake.wake.reason
        return seconds

    async def create() -> float:
        wanted = made()
        seconds = await timed(lambda: run(agent, wanted))
        await agent.host.run(_name(), DestroyMachine(vm_id=wanted.vm_id), _LIMIT_S)
        return seconds

    found = await compare(
        "hibernate: resume against cold create", resume, create, rounds=rounds, goal=0.15
    )
    await agent.host.run(_name(), DestroyMachine(vm_id=sleeper.vm_id), _LIMIT_S)
    return found, slept


def made() -> CreateMachine:
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.CLI,
        memory_mib=MEMORY_MIB,
        vcpus=1,
        disk_mib=4096,
        ready_timeout_s=_LIMIT_S,
    )


async def run(agent: BenchAgent, operation: Operation) -> MachineView:
    view = await agent.host.run(_name(), operation, _LIMIT_S)
    assert view is not None
    return view


def _name() -> str:
    return f"bench-{new_vm_id()}"
