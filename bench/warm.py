"""What warm browser machines save: create -> the browser shows a page, waiting and cloned against
booted.

All sides end at the same marker: Chromium answers with a picture of a page that it has painted.
Each has a host agent of its own: one has a clone wait before each round, one may only clone, one
may only boot. Templates, and clones that wait, are made before any clock starts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from bench.agent import BenchAgent
from bench.measure import Comparison, Side, compare, timed
from bench.page import painted
from polydev.domain import MachineKind, new_vm_id
from polydev.hostapi import CreateMachine, DestroyMachine, WarmShape

SHAPE = WarmShape(memory_mib=2048, vcpus=2, disk_mib=6144)
_LIMIT_S = 900.0
_LOOK_S = 1.0


async def warm_browsers(
    waiting: BenchAgent, cloning: BenchAgent, cold: BenchAgent, rounds: int
) -> Sequence[Comparison]:
    """Seconds of each way against booting, alternating."""
    for agent in (waiting, cloning):
        await agent.host.warm_up(SHAPE)
        await _until(agent, waiting=0)

    def quiet(side: Side) -> Side:
        """Beside neither side another clone is being made to wait."""

        async def run() -> float:
            await _until(waiting, waiting=1)
            return await side()

        return run

    booted = quiet(_first_page(cold, is_clone=False))
    return [
        await compare(
            "browser: create to first page, one waits",
            quiet(_first_page(waiting, is_clone=True)),
            booted,
            rounds=rounds,
            goal=0.10,
        ),
        await compare(
            "browser: create to first page, cloned",
            quiet(_first_page(cloning, is_clone=True)),
            booted,
            rounds=rounds,
        ),
    ]


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


def _first_page(agent: BenchAgent, *, is_clone: bool) -> Side:
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
            await painted(agent.host, vm_id, _LIMIT_S)

        seconds = await timed(shown)
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
        return seconds

    return run
