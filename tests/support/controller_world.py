"""A host agent with simulated machines, and a controller over it: both real processes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent_process import AgentProcess, agent_world
from controller_process import KEY, TOKEN, ControllerProcess

FILES = {
    "codex": "/root/.codex/auth.json",
    "claude_code": "/root/.claude/.credentials.json",
}


class World:
    """What there is of Polydev in a test."""

    def __init__(self, agent: AgentProcess, controller: ControllerProcess) -> None:
        self.agent = agent
        self.controller = controller

    async def machines(self) -> dict[str, str]:
        """The host's machines by id, found by looking: everything else must belong to one."""
        async with self.agent.host() as host:
            there = await host.inventory()
            views = {view.vm_id: str(view.machine_kind) for view in await host.machines()}
        assert sorted(there.machines) == sorted(views)
        assert sorted(there.folders) == sorted(views)
        assert sorted(there.addresses) == sorted(views)
        assert len(there.taps) == len(there.firewall) == len(views)
        return views

    async def rows(self) -> dict[str, str]:
        """The person's machines by id, as the API tells them."""
        listed = await self.controller.ask("GET", "/api/vm/list")
        return {row["vm_id"]: row["vm_type"] for row in listed}

    async def destroy(self, vm_id: str) -> None:
        """Destroy a machine through the API, and wait until it is gone."""
        view = await self.controller.ask("POST", "/api/vm/destroy", {"vmId": vm_id})
        while view["status"] != "destroyed":
            path = f"/api/vm/{vm_id}?after={view['version']}&wait=20"
            view = await self.controller.ask("GET", path)

    async def credentials(self, vm_id: str, provider: str) -> dict[str, Any]:
        """What a CLI machine's CLI finds."""
        async with self.agent.host() as host:
            found: dict[str, Any] = json.loads(await host.read_file(vm_id, FILES[provider]))
            return found

    async def assert_clean(self, *cli_machines: str) -> None:
        """Exactly these CLI machines exist, on the host and in rows, and nothing else."""
        expected = dict.fromkeys(cli_machines, "cli")
        assert await self.machines() == expected
        assert await self.rows() == expected

    def assert_no_trace_of(self, *secrets: str) -> None:
        """No file but the CLI machines' own disks, and no process' arguments, hold a secret."""
        needles = [secret.encode() for secret in (*secrets, KEY, TOKEN)]
        files = [self.controller.log, self.agent.log, *self.agent.state_dir.rglob("*")]
        looked_at = [it for it in files if it.is_file() and "simulated-root" not in it.parts]
        assert any(it.name == "journal.db" for it in looked_at)
        for path in (*looked_at, *Path("/proc").glob("[0-9]*/cmdline")):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            for needle in needles:
                assert needle not in content, f"{needle[:6]!r}… is in {path}"


def tokens_in(credentials: object) -> list[str]:
    """Every text of credentials that is long enough to be a secret."""
    return re.findall(r'"([^"\s]{24,})"', json.dumps(credentials))


@asynccontextmanager
async def a_world(
    simulation: dict[str, Any] | None = None, **settings: str
) -> AsyncIterator[World]:
    """A world whose simulated machines, and whose controller, are set up so."""
    told = json.dumps(simulation or {})
    async with agent_world(POLYDEV_DRIVER="simulated", POLYDEV_SIMULATION=told) as agent:
        await agent.start()
        controller = ControllerProcess(agent.state_dir, **settings)
        try:
            yield World(agent, controller)
        finally:
            await controller.kill()
