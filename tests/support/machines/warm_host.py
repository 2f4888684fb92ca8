"""A host of simulated machines, for tests of the warm pool."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from machine_parts import Faults, InMemoryNetwork

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.resources.memory_admission import MemoryAdmission
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.warm_pool import Headroom, WarmPolicy, WarmPool
from polydev.shared.domain import MachineKind, MachineSize, new_vm_id
from polydev.shared.errors import DiskFull
from polydev.shared.host_protocol import CreateMachine, HostMachineView
from polydev.testing.simulated_vmm import SimulatedDriver, SimulatedProvisioner, Simulation

LIMIT_S = 60.0
SHAPE = MachineSize(2048, 2, 6144)
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
    waiting: int = 0
    processors: int = 64
    memory_mib: int | None = None
    """Memory limit of all machines."""
    left_mib: Callable[[], int] | None = None
    """Available memory of the host."""
    held_mib: int = 0
    """Memory that a standby clone already uses."""

    def __post_init__(self) -> None:
        self.network = InMemoryNetwork(Faults())
        self.meminfo = self.root / "meminfo"
        self.meminfo.write_text(PLENTY)
        (self.root / "machines").mkdir()

    @property
    def templates(self) -> list[Path]:
        """Folders of templates, complete or not."""
        found = (self.root / "warm").iterdir() if (self.root / "warm").is_dir() else ()
        return [path for path in found if path.is_dir()]

    @property
    def is_empty(self) -> bool:
        """True if nothing of any machine is left."""
        return not list((self.root / "machines").iterdir()) and not self.network.attachments

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[MachineService]:
        """Start an agent without its background work."""
        settings = HostSettings(state_dir=self.root, driver="simulated", **self.settings)  # type: ignore[arg-type]
        host = HostContext(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            log_archive=LogArchive(self.root / "logs"),
            driver=SimulatedDriver(self.simulation),
            network=self.network,
            provisioner=SimulatedProvisioner(settings),
            memory_keys=MemoryKeys.for_state(self.root, self.root / "keys"),
            admission=MemoryAdmission(self.memory_mib, available_mib=self.left_mib),
        )
        room = Headroom(self.root, self.meminfo)
        policy = WarmPolicy(
            self.root / "warm",
            room,
            is_on=self.is_on,
            quiet_s=self.quiet_s,
            waiting=self.waiting,
            refill_quiet_s=0,
            refill_pause_s=0,
            processors=self.processors,
            poll_s=0.02,
        )
        registry = MachineRegistry(host)
        pool = WarmPool(host, registry, policy)
        machines = MachineService(host, registry, pool)
        waiting = pool._standby
        waiting.held_bytes = lambda vm_id: self.held_mib << 20 if vm_id in waiting._reserved else 0  # type: ignore[method-assign]
        await machines.recover()
        try:
            yield machines
        finally:
            await machines.close()

    @asynccontextmanager
    async def running_agent(self) -> AsyncIterator[MachineService]:
        """Start an agent with its background work."""
        async with self.agent() as machines:
            making = asyncio.create_task(machines.clones.run())
            try:
                yield machines
            finally:
                making.cancel()
                await asyncio.wait({making})


TOKEN = "the clone's"


def browser_request(memory_mib: int = 2048, token: str = TOKEN) -> CreateMachine:
    """Build a controller's request for a browser machine."""
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        memory_mib=memory_mib,
        vcpus=2,
        disk_mib=6144,
        token=token,  # type: ignore[arg-type]
        ready_timeout_s=180,
    )


async def create_and_destroy(
    machines: MachineService, asked: CreateMachine | None = None
) -> HostMachineView:
    """Create and destroy a browser machine."""
    asked = asked or browser_request()
    view = await machines.create(asked)
    await machines.destroy(asked.vm_id)
    return view


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Poll until a condition holds."""
    until_s = time.monotonic() + LIMIT_S
    while not await holds():
        assert time.monotonic() < until_s, "the condition never held"
        await asyncio.sleep(0.01)


async def until_template_ready(machines: MachineService) -> None:
    """Wait until there is a template."""

    async def is_ready() -> bool:
        return (await machines.clones.view()).state == "ready"

    await until(is_ready)


async def until_standby(machines: MachineService, count: int = 1) -> None:
    """Wait until there are so many standby clones."""

    async def has_enough() -> bool:
        return (await machines.clones.view()).waiting == count

    await until(has_enough)


async def build_template(host: WarmHost) -> None:
    """Have an agent build a template, without standby clones."""
    host.waiting = 0
    async with host.running_agent() as machines:
        await machines.clones.request_template(SHAPE)
        await until_template_ready(machines)


@asynccontextmanager
async def with_standby(host: WarmHost, count: int = 1) -> AsyncIterator[MachineService]:
    """Start an agent with so many standby clones."""
    async with host.running_agent() as machines:
        await machines.clones.request_template(SHAPE)
        await until_standby(machines, count)
        yield machines


def standby_ids(machines: MachineService) -> list[str]:
    """Return the ids of standby clones, also of those in creation."""
    views = machines.views()
    return [view.vm_id for view in views if view.labels == {"purpose": "warm-waiting"}]


async def status_of(machines: MachineService, vm_id: str, token: str) -> bytes:
    """Return the browser service's HTTP status for a token."""
    connection = await machines.open_tcp(vm_id, 8080)
    request = (
        f"GET /v1/nothing HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAuthorization: Bearer {token}\r\n"
    )
    await connection.write(f"{request}Connection: close\r\n\r\n".encode())
    answer = await connection.read(4096)
    await connection.close()
    return answer.split()[1]


class StepFault:
    """Makes the first call of a step fail, or hang until it is cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached = asyncio.Event()
        self.hangs = False
        self.is_done = False
        self._real: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def step(*given: Any, **named: Any) -> Any:
            return await self._step(*given, **named)

        monkeypatch.setattr(owner, name, step)  # a function, so that it is bound to its object

    async def _step(self, *given: Any, **named: Any) -> Any:
        if self.is_done:
            return await self._real(*given, **named)
        self.is_done = True
        self.reached.set()
        if self.hangs:
            await asyncio.Event().wait()
        raise DiskFull("No room", hint="Make some")


class CallCounter:
    """Counts the completed calls of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.count = 0
        real: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def step(*given: Any, **named: Any) -> Any:
            done = await real(*given, **named)
            self.count += 1
            return done

        monkeypatch.setattr(owner, name, step)

    async def reached(self, count: int) -> None:
        async def has_enough() -> bool:
            return self.count >= count

        await until(has_enough)


class SlowThread:
    """Blocks a function in its thread until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self.goes_on, self.ended = (threading.Event() for _ in range(3))
        real = getattr(owner, name)

        def work(*given: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.goes_on.wait(LIMIT_S)
            try:
                return real(*given, **named)
            finally:
                self.ended.set()

        is_bound = hasattr(real, "__self__")
        monkeypatch.setattr(owner, name, staticmethod(work) if is_bound else work)


def step_parameters(steps: list[tuple[Any, str]]) -> dict[str, Any]:
    """Parametrize a test by these steps."""
    return {"argvalues": steps, "ids": [name for _, name in steps]}
