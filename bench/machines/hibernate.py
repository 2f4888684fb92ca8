"""Compare resume with cold create, and measure the costs of hibernation.

Both sides end when the host agent reports that the machine's channel answers. Both machines are
unused after their boot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

from bench.common.agent import BenchAgent
from bench.common.measure import Comparison, compare, private_mib, timed
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    HostMachineView,
    Operation,
    ResumeMachine,
)

MEMORY_MIB = 512
_LIMIT_S = 120.0
_MIB = 1024 * 1024


@dataclass
class HibernationCosts:
    """Memory freed, bytes written and seconds of each hibernation."""

    freed_mib: list[float] = field(default_factory=list)
    on_disk_mib: list[float] = field(default_factory=list)
    hibernate_s: list[float] = field(default_factory=list)

    def rows(self) -> list[str]:
        """Format the medians."""
        return [
            f"{'hibernate: host memory freed':<44} {median(self.freed_mib):>9.0f} MiB",
            f"{'hibernate: bytes on disk':<44} {median(self.on_disk_mib):>9.1f} MiB",
            f"{'hibernate: time to hibernate':<44} {median(self.hibernate_s):>9.3f} s",
        ]


async def hibernate(agent: BenchAgent, rounds: int) -> tuple[Comparison, HibernationCosts]:
    """Compare resume and cold create, in turn, until the channel answers."""
    sleeper = await run(agent, create_request())
    costs = HibernationCosts()

    async def resume() -> float:
        running = await agent.host.machine(sleeper.vm_id)
        freed = private_mib(running.pid)
        began = time.monotonic()
        hibernated = await run(agent, HibernateMachine(vm_id=sleeper.vm_id))
        costs.hibernate_s.append(time.monotonic() - began)
        costs.freed_mib.append(freed)
        costs.on_disk_mib.append(hibernated.memory_on_disk_bytes / _MIB)
        resume_request = ResumeMachine(vm_id=sleeper.vm_id, ready_timeout_s=_LIMIT_S)
        seconds = await timed(lambda: run(agent, resume_request))
        resumed = await agent.host.machine(sleeper.vm_id)
        assert resumed.wake is not None
        assert resumed.wake.how == "resumed", resumed.wake.reason
        return seconds

    async def create() -> float:
        wanted = create_request()
        seconds = await timed(lambda: run(agent, wanted))
        await agent.host.run(_name(), DestroyMachine(vm_id=wanted.vm_id), _LIMIT_S)
        return seconds

    comparison = await compare(
        "hibernate: resume against cold create", resume, create, rounds=rounds, goal=0.15
    )
    await agent.host.run(_name(), DestroyMachine(vm_id=sleeper.vm_id), _LIMIT_S)
    return comparison, costs


def create_request() -> CreateMachine:
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.CLI,
        memory_mib=MEMORY_MIB,
        vcpus=1,
        disk_mib=4096,
        ready_timeout_s=_LIMIT_S,
    )


async def run(agent: BenchAgent, operation: Operation) -> HostMachineView:
    view = await agent.host.run(_name(), operation, _LIMIT_S)
    assert view is not None
    return view


def _name() -> str:
    return f"bench-{new_vm_id()}"
