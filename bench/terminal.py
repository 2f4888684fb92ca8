"""What the way to a terminal costs: the API's WebSocket against the channel that it carries.

Both sides run the same program on a pseudo-terminal, `head -c N /dev/zero | base64`, and read all
that it prints: once from the host agent directly, as the controller does, once through the
controller's `/exec`, whose relay is the terminal's (api/streams.py), but for one byte a frame. Not
through tmux, which draws a screen and leaves out what nobody could read in time.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from websockets.asyncio.client import connect

from bench.load import World, simulated_world
from bench.measure import Comparison, compare
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import ExecRequest

GOAL = 1 / 0.9
"""At least 90 % of what the channel carries."""
_PTY = (200, 50)
_WAIT_S = 25


@dataclass(frozen=True, slots=True)
class _Place:
    """A machine, and both ways to it."""

    host: Host
    world: World
    vm_id: str


async def terminal(rounds: int, size: int) -> Comparison:
    """Seconds for the same output, through the API and directly, on a simulated machine."""
    request = ExecRequest(argv=["sh", "-c", f"head -c {size} /dev/zero | base64"], pty=_PTY)
    async with _machine() as place:
        await _directly(place, request, size)  # connections are made before anything is measured
        return await compare(
            "terminal through the API",
            lambda: _through_api(place, request, size),
            lambda: _directly(place, request, size),
            rounds=rounds,
            goal=GOAL,
        )


async def _directly(place: _Place, request: ExecRequest, size: int) -> float:
    began, count = time.monotonic(), 0
    async with place.host.exec(place.vm_id, request) as process:
        async for _, chunk in process:
            count += len(chunk)
    return _checked(count, size, began)


async def _through_api(place: _Place, request: ExecRequest, size: int) -> float:
    url = f"{place.world.url.replace('http', 'ws', 1)}/api/vm/{place.vm_id}/exec"
    headers = {"Authorization": f"Bearer {place.world.token}"}
    began, count = time.monotonic(), 0
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as socket:
        await socket.send(request.model_dump_json())
        async for frame in socket:
            if isinstance(frame, str):
                assert json.loads(frame)["exit_code"] == 0, frame
                break
            count += len(frame) - 1
    return _checked(count, size, began)


def _checked(count: int, size: int, began: float) -> float:
    assert count > size * 4 // 3, f"only {count} bytes came"
    return time.monotonic() - began


@asynccontextmanager
async def _machine() -> AsyncIterator[_Place]:
    async with simulated_world(channel="ssh") as world:
        view = await _asked(world, "POST", "/api/vm/create", {"vmType": "cli"})
        while view["status"] == "creating":
            path = f"/api/vm/{view['vm_id']}?after={view['version']}&wait={_WAIT_S}"
            view = await _asked(world, "GET", path)
        assert view["status"] == "running", view
        async with Host(world.state_dir / "sockets" / "hostd.sock") as host:
            yield _Place(host, world, view["vm_id"])


async def _asked(world: World, method: str, path: str, body: object = None) -> dict[str, Any]:
    return cast(dict[str, Any], await world.ask(method, path, body))
