"""Compare standby clones and clones of browser machines with booted ones.

All sides end when Chromium returns a screenshot of a painted page. Each has its own host agent: one
has a standby clone ready before each round, one only clones, one only boots. Templates and standby
clones are created before the clock starts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.common.agent import BenchAgent
from bench.common.effort import Effort
from bench.common.measure import Side, compare, private_mib, timed
from bench.machines.page import wait_painted, wait_served
from polydev.shared.domain import MachineKind, MachineSize, new_vm_id
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import CreateMachine, DestroyMachine

SHAPE = MachineSize(2048, 2, 6144)
_LIMIT_S = 900.0
_POLL_S = 1.0
Shows = Callable[[HostClient, str, float], Awaitable[None]]
"""Wait until a machine shows a page."""


async def warm_browsers(
    standby: BenchAgent, cloning: BenchAgent, cold: BenchAgent, effort: Effort
) -> AsyncIterator[str]:
    """Yield rows: each way against booting, and the memory of a standby clone."""
    for agent in (standby, cloning):
        await agent.host.warm_up(SHAPE)
        await _wait_for_pool(agent, standby_clones=0)

    def quiet(side: Side) -> Side:
        """Wait for the standby clone, so that its creation disturbs no side."""

        async def run() -> float:
            await _wait_for_pool(standby, standby_clones=1)
            return await side()

        return run

    shows = wait_served if effort.is_trial else wait_painted
    await _wait_for_pool(standby, standby_clones=1)
    [view] = await standby.host.machines()
    yield f"{'browser: memory of a standby clone':<44} {private_mib(view.pid):>9.0f} MiB"
    booted = quiet(_first_page(cold, shows, is_clone=False))
    for name, agent, goal in (
        ("browser: create to first page, standby", standby, 0.10),
        ("browser: create to first page, cloned", cloning, None),
    ):
        warm = quiet(_first_page(agent, shows, is_clone=True))
        yield (await compare(name, warm, booted, rounds=effort.rounds, goal=goal)).row()


async def _wait_for_pool(agent: BenchAgent, *, standby_clones: int) -> None:
    """Wait for the template and that many standby clones."""
    async with asyncio.timeout(_LIMIT_S):
        while True:
            view = await agent.host.warmth()
            if view.state == "ready" and view.waiting >= standby_clones:
                return
            if view.state not in ("making", "ready"):
                raise SystemExit(f"there is no template: {view.words}")
            await asyncio.sleep(_POLL_S)


def _first_page(agent: BenchAgent, shows: Shows, *, is_clone: bool) -> Side:
    async def run() -> float:
        vm_id = new_vm_id()
        wanted = CreateMachine(
            vm_id=vm_id,
            machine_kind=MachineKind.BROWSER,
            **SHAPE.fields(),
            token=secrets.token_urlsafe(32),  # type: ignore[arg-type]
            ready_timeout_s=_LIMIT_S,
        )

        async def shown() -> None:
            view = await agent.host.run(f"create-{vm_id}", wanted, _LIMIT_S)
            if view is None or view.is_clone is not is_clone:
                raise SystemExit(f"a machine started in the wrong way: {view}")
            await shows(agent.host, vm_id, _LIMIT_S)

        seconds = await timed(shown)
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
        return seconds

    return run
