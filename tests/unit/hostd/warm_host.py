"""A host of simulated machines, for tests of warm browser machines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from machine_parts import BookNetwork, Faults

from polydev.domain import MachineKind, new_vm_id
from polydev.hostapi import CreateMachine, MachineView
from polydev.hostd.furnishing import SimulatedFurnishing
from polydev.hostd.kept_logs import KeptLogs
from polydev.hostd.machines import Machines
from polydev.hostd.site import Site
from polydev.hostd.snapshots import MemoryKeys
from polydev.hostd.vmm.simulated import SimulatedDriver, Simulation
from polydev.hostd.warm import Room, WarmPolicy
from polydev.settings import HostSettings

LIMIT_S = 60.0
PLENTY = "MemAvailable:   16000000 kB\n"
NEXT_TO_NOTHING = "MemAvailable:     500000 kB\n"


@dataclass
class WarmHost:
    """One host; each `agent` is another host agent over the same folders."""

    root: Path
    simulation: Simulation = field(default_factory=Simulation)
    settings: dict[str, object] = field(default_factory=dict)
    quiet_s: float = 0
    is_on: bool = True

    def __post_init__(self) -> None:
        self.network = BookNetwork(Faults())
        self.meminfo = self.root / "meminfo"
        self.meminfo.write_text(PLENTY)
        (self.root / "machines").mkdir()

    @property
    def templates(self) -> list[Path]:
        """What lies where templates do, finished or not."""
        found = (self.root / "warm").iterdir() if (self.root / "warm").is_dir() else ()
        return [path for path in found if path.is_dir()]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of any machine."""
        return not list((self.root / "machines").iterdir()) and not self.network.places

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Machines]:
        """An agent whose background work is not begun."""
        settings = HostSettings(state_dir=self.root, driver="simulated", **self.settings)  # type: ignore[arg-type]
        site = Site(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            kept_logs=KeptLogs(self.root / "logs"),
            driver=SimulatedDriver(self.simulation),
            network=self.network,
            furnishing=SimulatedFurnishing(settings),
            memory_keys=MemoryKeys.for_state(self.root, self.root / "keys"),
        )
        room = Room(self.root, self.meminfo)
        policy = WarmPolicy(
            self.root / "warm", room, is_on=self.is_on, quiet_s=self.quiet_s, look_s=0.02
        )
        machines = Machines(site, policy)
        await machines.recover()
        try:
            yield machines
        finally:
            await machines.close()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Machines]:
        """An agent that makes templates."""
        async with self.agent() as machines:
            making = asyncio.create_task(machines.warm_browsers.run())
            try:
                yield machines
            finally:
                making.cancel()
                await asyncio.wait({making})


TOKEN = "the clone's"


def wanted(memory_mib: int = 2048, token: str = TOKEN) -> CreateMachine:
    """A browser machine as a controller asks for one."""
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        memory_mib=memory_mib,
        vcpus=2,
        disk_mib=6144,
        token=token,  # type: ignore[arg-type]
        ready_timeout_s=180,
    )


async def created_and_gone(machines: Machines, asked: CreateMachine | None = None) -> MachineView:
    """A browser machine that was asked for once."""
    asked = asked or wanted()
    view = await machines.create(asked)
    await machines.destroy(asked.vm_id)
    return view


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that is told by looking alone."""
    until_s = time.monotonic() + LIMIT_S
    while not await holds():
        assert time.monotonic() < until_s, "it never came to be"
        await asyncio.sleep(0.01)


async def until_ready(machines: Machines) -> None:
    """Wait until there is a template."""

    async def is_ready() -> bool:
        return (await machines.warm_browsers.view()).state == "ready"

    await until(is_ready)
