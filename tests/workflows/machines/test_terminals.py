"""Terminals of the API, on simulated machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from api_users import create_user
from controller_process import TOKEN
from controller_world import World
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from polydev.shared.host_protocol import ExecEnd

LIMIT_S = 60


async def create_machine(world: World) -> str:
    """Create a CLI machine and wait until it runs."""
    await world.controller.start()
    view = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    return str((await world.wait_for_machine(view["vm_id"], "running"))["vm_id"])


@asynccontextmanager
async def open_terminal(
    world: World, vm_id: str, query: str = "columns=100&rows=30", token: str = TOKEN
) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{world.controller.port}/api/vm/{vm_id}/terminal?{query}"
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(url, additional_headers=headers, max_size=None) as socket:
        yield socket


async def until_shown(socket: ClientConnection, text: bytes) -> bytes:
    """Read the output up to a text."""
    shown = b""
    async with asyncio.timeout(LIMIT_S):
        while text not in shown:
            frame = await socket.recv()
            assert isinstance(frame, bytes), frame
            shown += frame
    return shown


async def read_exec_end(socket: ClientConnection) -> ExecEnd:
    async with asyncio.timeout(LIMIT_S):
        async for frame in socket:
            if isinstance(frame, str):
                return ExecEnd.model_validate_json(frame)
    raise AssertionError("the terminal ended without its end")


async def test_input_is_run_and_echoed(world: World) -> None:
    vm_id = await create_machine(world)
    async with open_terminal(world, vm_id) as socket:
        await socket.send("echo Grüße\r".encode())
        await until_shown(socket, "\r\nGrüße\r\n".encode())
        await socket.send(b"exit\r")
        end = await read_exec_end(socket)
        assert (end.exit_code, end.error) == (0, None)


async def test_terminal_follows_the_window_size(
    world: World,
) -> None:
    vm_id = await create_machine(world)
    async with open_terminal(world, vm_id) as socket:
        await socket.send(b"stty size\r")
        await until_shown(socket, b"\r\n30 100\r\n")
        await socket.send(json.dumps({"resize": [120, 40]}))
        await socket.send(b"stty size\r")
        await until_shown(socket, b"\r\n40 120\r\n")


async def test_terminal_outlives_connection_and_controller(world: World) -> None:
    vm_id = await create_machine(world)
    async with open_terminal(world, vm_id) as socket:
        await socket.send(b"echo before\r")
        await until_shown(socket, b"\r\nbefore\r\n")
    async with open_terminal(world, vm_id) as socket:
        await until_shown(socket, b"\r\nbefore\r\n")
    await world.controller.kill()
    await world.controller.start()
    await world.controller.call("GET", "/health")
    async with open_terminal(world, vm_id) as socket, open_terminal(world, vm_id) as beside:
        await until_shown(socket, b"\r\nbefore\r\n")
        await until_shown(beside, b"\r\nbefore\r\n")
        await socket.send(b"echo after\r")
        await until_shown(beside, b"\r\nafter\r\n")
    async with open_terminal(world, vm_id, "name=other") as other:
        assert b"before" not in await until_shown(other, b"$ ")


async def test_invalid_frames_end_it_with_an_error(world: World) -> None:
    vm_id = await create_machine(world)
    for frame in ('{"resize": [0, 10]}', '{"resize": [10, 100000]}', "{}", "resize"):
        async with open_terminal(world, vm_id) as socket:
            await socket.send(frame)
            end = await read_exec_end(socket)
            assert end.error is not None
            assert end.error.code == "bad-request"


async def test_terminal_needs_its_owner_and_valid_parameters(
    world: World,
) -> None:
    vm_id = await create_machine(world)
    for query in ("columns=0", "rows=501", "name=../x", "name=a%20b"):
        with pytest.raises(InvalidStatus):
            async with open_terminal(world, vm_id, query):
                pass
    [(_, other)] = (await world.create_users(1)).items()
    for token, status in (("wrong", 401), (other, 404)):
        with pytest.raises(InvalidStatus) as refused:
            async with open_terminal(world, vm_id, token=token):
                pass
        assert refused.value.response.status_code == status


async def test_foreign_origin_is_refused(world: World) -> None:
    await create_machine(world)
    user = await create_user(world.controller, "owner")
    async with user.by_cookie() as client:
        made = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
        vm_id = made["vm_id"]
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    while (await world.states()).get(vm_id) != "running":
        await asyncio.sleep(0.05)
    base = f"127.0.0.1:{world.controller.port}"
    for origin, status in (("http://evil.test", 403), (f"http://{base}", None)):
        headers = {"Cookie": cookie}
        opening = connect(
            f"ws://{base}/api/vm/{vm_id}/terminal", additional_headers=headers, origin=origin
        )
        if status is None:
            async with opening as socket:
                await until_shown(socket, b"$ ")
            continue
        with pytest.raises(InvalidStatus) as refused:
            async with opening:
                pass
        assert refused.value.response.status_code == status


async def test_stopped_machine_is_reported(world: World) -> None:
    vm_id = await create_machine(world)
    await world.controller.call("POST", f"/api/vm/{vm_id}/stop")
    await world.wait_for_machine(vm_id, "stopped")
    async with open_terminal(world, vm_id) as socket:
        end = await read_exec_end(socket)
    assert end.error is not None
    assert end.error.code == "machine-busy"


async def test_large_output_is_complete_and_in_order(world: World) -> None:
    vm_id = await create_machine(world)
    async with open_terminal(world, vm_id) as socket:
        await until_shown(socket, b"$ ")
        await socket.send(b"head -c 6000000 /dev/zero | base64\r")
        shown = await until_shown(socket, b"A\n$ ")
        assert shown.count(b"A") == 8_000_000
