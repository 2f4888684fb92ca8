"""Compare a terminal through the API with the host agent's channel.

Both sides run `head -c N /dev/zero | base64` on a pseudo-terminal and read its output: from the
host agent directly, as the controller does, and through the controller's `/exec`, which relays like
the terminal, apart from one byte per frame. tmux is not used: it redraws a screen and skips output
that scrolls too fast.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from websockets.asyncio.client import connect

from bench.common.measure import Comparison, compare
from bench.controller.load import World, simulated_world
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import ExecRequest

GOAL = 1 / 0.9
"""At least 90 % of the channel's throughput."""
_PTY = (200, 50)
_WAIT_S = 25


@dataclass(frozen=True, slots=True)
class _Machine:
    """Machine with its host and API clients."""

    host: HostClient
    world: World
    vm_id: str


async def terminal(rounds: int, size: int) -> Comparison:
    """Compare the seconds for the same output on a simulated machine."""
    request = ExecRequest(argv=["sh", "-c", f"head -c {size} /dev/zero | base64"], pty=_PTY)
    async with _running_machine() as machine:
        await _read_directly(
            machine, request, size
        )  # opens the connections before the clock starts
        return await compare(
            "terminal through the API",
            lambda: _read_through_api(machine, request, size),
            lambda: _read_directly(machine, request, size),
            rounds=rounds,
            goal=GOAL,
        )


async def _read_directly(machine: _Machine, request: ExecRequest, size: int) -> float:
    began, count = time.monotonic(), 0
    async with machine.host.exec(machine.vm_id, request) as process:
        async for _, chunk in process:
            count += len(chunk)
    return _elapsed(count, size, began)


async def _read_through_api(machine: _Machine, request: ExecRequest, size: int) -> float:
    url = f"{machine.world.url.replace('http', 'ws', 1)}/api/vm/{machine.vm_id}/exec"
    headers = {"Authorization": f"Bearer {machine.world.token}"}
    began, count = time.monotonic(), 0
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as socket:
        await socket.send(request.model_dump_json())
        async for frame in socket:
            if isinstance(frame, str):
                assert json.loads(frame)["exit_code"] == 0, frame
                break
            count += len(frame) - 1
    return _elapsed(count, size, began)


def _elapsed(count: int, size: int, began: float) -> float:
    assert count > size * 4 // 3, f"received only {count} bytes"
    return time.monotonic() - began


@asynccontextmanager
async def _running_machine() -> AsyncIterator[_Machine]:
    async with simulated_world(channel="ssh") as world:
        view = await _request(world, "POST", "/api/vm/create", {"vmType": "cli"})
        while view["status"] == "creating":
            path = f"/api/vm/{view['vm_id']}?after={view['version']}&wait={_WAIT_S}"
            view = await _request(world, "GET", path)
        assert view["status"] == "running", view
        async with HostClient(world.state_dir / "sockets" / "hostd.sock") as host:
            yield _Machine(host, world, view["vm_id"])


async def _request(world: World, method: str, path: str, body: object = None) -> dict[str, Any]:
    return cast(dict[str, Any], await world.request(method, path, body))
