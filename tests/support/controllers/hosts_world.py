"""A real controller and several real host agents with simulated machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from agent_process import AgentProcess, agent_world
from controller_process import ControllerProcess

LIMIT_S = 90
QUICKLY = {
    "POLYDEV_HOST_PERIOD_S": "0.5",
    "POLYDEV_HOST_UNSEEN_LIMIT_S": "3",
    "POLYDEV_HOST_DEAD_LIMIT_S": "6",
}
"""Settings that poll hosts often and declare them dead soon; for tests that kill one."""


class HostsWorld:
    """Several host agents with their controllers."""

    def __init__(self, agents: Mapping[str, AgentProcess], controller: ControllerProcess) -> None:
        self.agents = agents
        self.controller = controller
        self._others: list[ControllerProcess] = []

    async def machines(self) -> dict[str, dict[str, str]]:
        """Kinds of machines by id, per host; waits until nothing else is left there."""
        until_s = asyncio.get_running_loop().time() + LIMIT_S
        while True:
            found, strays = await self._inspect()
            if not strays:
                return found
            assert asyncio.get_running_loop().time() < until_s, strays
            await asyncio.sleep(0.3)  # a creation or removal may be halfway

    async def _inspect(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """Machines per host, and the hosts with resources of no machine."""
        found, strays = {}, []
        for name, agent in self.agents.items():
            if agent.is_running:
                async with agent.host() as host:
                    there = await host.inventory()
                    views = {it.vm_id: str(it.machine_kind) for it in await host.machines()}
                found[name] = views
                if not (
                    sorted(there.folders) == sorted(there.addresses) == sorted(views)
                    and len(there.taps) == len(there.firewall) == len(views)
                ):
                    strays.append(name)
        return found, strays

    def add_controller(self, name: str) -> ControllerProcess:
        """Add a controller of the same database, not started."""
        first = self.controller
        self._others.append(ControllerProcess(first.state_dir, name, **_shared(first.env)))
        return self._others[-1]

    async def close(self) -> None:
        """End all controllers."""
        for controller in (self.controller, *self._others):
            await controller.kill()

    async def wait_until_clean(self, *cli_machines: str) -> None:
        """Wait until exactly these CLI machines exist on all hosts and in the API."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                by_host, strays = await self._inspect()  # a removal may be halfway
                there = sorted(vm_id for views in by_host.values() for vm_id in views)
                rows = sorted(
                    row["vm_id"] for row in await self.controller.call("GET", "/api/vm/list")
                )
                if not strays and there == rows == sorted(cli_machines):
                    return
                await asyncio.sleep(0.3)

    async def audit(self, via: str) -> list[dict[str, Any]]:
        """Audit entries with this `via`."""
        found: list[dict[str, Any]] = await self.controller.call("GET", "/api/admin/audit")
        return [it for it in found if it["via"] == via]


@asynccontextmanager
async def hosts_world(
    hosts: Sequence[Mapping[str, str]],
    simulation: Mapping[str, Any] | None = None,
    **settings: str,
) -> AsyncIterator[HostsWorld]:
    """Running hosts `a`, `b`, ... with these settings, and a controller that is not started."""
    simulated = json.dumps(simulation or {})
    async with AsyncExitStack() as closing:
        agents = {}
        for name, env in zip("abcdefgh", hosts, strict=False):
            opening = agent_world(POLYDEV_DRIVER="simulated", POLYDEV_SIMULATION=simulated, **env)
            agents[name] = await closing.enter_async_context(opening)
            await agents[name].start()
        named = " ".join(f"{name}={agent.socket}" for name, agent in agents.items())
        folder = agents["a"].state_dir.parent / "control"
        folder.mkdir()
        controller = ControllerProcess(folder / "state", POLYDEV_HOSTS=named, **settings)
        world = HostsWorld(agents, controller)
        closing.push_async_callback(world.close)
        yield world


def _shared(env: Mapping[str, str]) -> dict[str, str]:
    """Settings that controllers of one database share."""
    return {name: value for name, value in env.items() if name != "PORT"}
