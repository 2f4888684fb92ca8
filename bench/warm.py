"""What warm browser machines save: create -> the browser shows a page, waiting and cloned against
booted.

All sides end at the same marker: Chromium answers with a picture of a page that it has painted.
Each has a host agent of its own: one has a clone wait before each round, one may only clone, one
may only boot. Templates, and clones that wait, are made before any clock starts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.agent import BenchAgent
from bench.effort import Effort
from bench.measure import Side, compare, own_mib, timed
from bench.page import painted, served
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import CreateMachine, DestroyMachine, WarmShape

SHAPE = WarmShape(memory_mib=2048, vcpus=2, disk_mib=6144)
_LIMIT_S = 900.0
_LOOK_S = 1.0
Shows = Callable[[Host, str, float], Awaitable[None]]
"""Returns when a machine shows what is waited for."""


async def warm_browsers(
    waiting: BenchAgent, cloning: BenchAgent, cold: BenchAgent, effort: Effort
) -> AsyncIterator[str]:
    """Rows: seconds of each way against booting, alternating; what one that waits takes."""
    for agent in (waiting, cloning):
        await agent.host.warm_up(SHAPE)
        await _until(agent, waiting=0)

    def quiet(side: Side) -> Side:
        """Beside neither side another clone is being made to wait."""

        async def run() -> float:
            await _until(waiting, waiting=1)
            return await side()

        return run

    shows = served if effort.is_trial else painted
    await _until(waiting, waiting=1)
    [view] = await waiting.host.machines()
    yield f"{'browser: memory of one that waits':<44} {own_mib(view.pid):>9.0f} MiB"
    booted = quiet(_first_page(cold, shows, is_clone=False))
    for name, agent, goal in (
        ("browser: create to first page, one waits", waiting, 0.10),
        ("browser: create to first page, cloned", cloning, None),
    ):
        warm = quiet(_first_page(agent, shows, is_clone=True))
        yield (await compare(name, warm, booted, rounds=effort.rounds, goal=goal)).row()


async def _until(agent: BenchAgent, *, waiting: int) -> None:
    """Until there is a template, and so many clones of it wait."""
    async with asyncio.timeout(_LIMIT_S):
        while True:
            view = await agent.host.warmth()
            if view.state == "ready" and view.waiting >= waiting:
                return
            if view.state not in ("making", "ready"):
                raise SystemExit(f"there is no template: {view.words}")
            await asyncio.sleep(_LOOK_S)


def _first_page(agent: BenchAgent, shows: Shows, *, is_clone: bool) -> Side:
    async def run() -> float:
        vm_id = new_vm_id()
        wanted = CreateMachine(
            vm_id=vm_id,
            machine_kind=MachineKind.BROWSER,
            **SHAPE.model_dump(),
            token=secrets.token_urlsafe(32),  # type: ignore[arg-type]
            ready_timeout_s=_LIMIT_S,
        )

        async def shown() -> None:
            view = await agent.host.run(f"create-{vm_id}", wanted, _LIMIT_S)
            if view is None or view.is_clone is not is_clone:
                raise SystemExit(f"a machine was made in the other way: {view}")
            await shows(agent.host, vm_id, _LIMIT_S)

        seconds = await timed(shown)
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
        return seconds

    return run
