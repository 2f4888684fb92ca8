"""What warm browser machines save: create -> the browser shows a page, cloned against booted.

Both sides end at the same marker: Chromium answers with a picture of a page that it has painted.
Each has a host agent of its own, one of which may not clone; the template is made before any clock
starts.
"""

from __future__ import annotations

import asyncio
import secrets

from bench.agent import BenchAgent
from bench.measure import Comparison, Side, compare, timed
from polydev.domain import MachineKind, new_vm_id
from polydev.hostapi import CreateMachine, DestroyMachine, WarmShape, WarmView
from polydev.hostd.warm.guest import PAINTED

SHAPE = WarmShape(memory_mib=2048, vcpus=2, disk_mib=6144)
_LIMIT_S = 900.0
_LOOK_S = 1.0


async def warm_browsers(warm: BenchAgent, cold: BenchAgent, rounds: int) -> Comparison:
    """Seconds of both sides, alternating."""
    await _template(warm)
    name = "browser: create to first page, cloned"
    return await compare(
        name,
        _first_page(warm, is_clone=True),
        _first_page(cold, is_clone=False),
        rounds=rounds,
        goal=0.10,
    )


async def _template(agent: BenchAgent) -> WarmView:
    await agent.host.warm_up(SHAPE)
    async with asyncio.timeout(_LIMIT_S):
        view = await agent.host.warmth()
        while view.state == "making":
            await asyncio.sleep(_LOOK_S)
            view = await agent.host.warmth()
    if view.state != "ready":
        raise SystemExit(f"there is no template: {view.words}")
    return view


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
            argv = ["/usr/bin/python3", "-c", PAINTED.read_text()]
            found = await agent.host.run_program(vm_id, argv, timeout_s=_LIMIT_S)
            if found.exit_code != 0:
                raise SystemExit(f"no page was painted: {found.stderr.decode()[-300:]}")

        seconds = await timed(shown)
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
        return seconds

    return run
