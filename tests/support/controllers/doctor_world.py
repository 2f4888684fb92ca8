"""`polydev doctor` as a command, in a world without a reconciler."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from controller_process import TOKEN
from controller_world import World, open_world

from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine

LIMIT_S = 90
NEVER = "3000"
"""A reconciler period that never elapses: it would repair what doctor must find."""


@asynccontextmanager
async def open_doctor_world(**settings: str) -> AsyncIterator[World]:
    async with open_world(**{"POLYDEV_RECONCILE_PERIOD_S": NEVER, **settings}) as world:
        await world.controller.start()
        await world.controller.call("GET", "/health")
        yield world


async def command(world: World, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    """Start `polydev ...` as the administrator of this world."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "polydev.cli", *arguments),
        env={
            **world.agent.env,
            **{"PORT": str(world.controller.port), "POLYDEV_ADMIN_TOKEN": TOKEN},
            **env,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def doctor(world: World, *arguments: str, **env: str) -> list[dict[str, Any]]:
    """Run the command and return its checks; assert that its exit code agrees."""
    process = await command(world, "doctor", "--json", *arguments, **env)
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert out, err.decode()
    answer = json.loads(out)
    failed = [it for it in answer["checks"] if it["ok"] is False]
    assert process.returncode == bool(failed)
    assert answer["ok"] is not bool(failed)
    found: list[dict[str, Any]] = answer["checks"]
    return found


def failed_check(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The failed check of that name; assert that each failed check has a hint."""
    bad = [it for it in found if it["ok"] is False and it["name"] != "polydev"]  # `up` runs nowhere
    assert all(it["hint"] for it in bad), bad
    [it] = [it for it in bad if it["name"] == name]
    return it


def all_ok(found: list[dict[str, Any]]) -> bool:
    return all(it["ok"] for it in found if it["name"] != "polydev")


async def connect_cli(world: World, provider: str = "codex") -> str:
    """Complete a login; return the CLI machine's id."""
    session_id = await world.controller.connect(provider)
    view = await world.controller.wait_for_session(session_id, "completed")
    assert view["status"] == "completed", view
    return str(view["cliVM"]["vmId"])


async def run_on_host(world: World, operation: Any) -> None:
    """Run an operation on the host without the controller."""
    async with world.agent.host() as host:
        await host.run(f"test-{new_vm_id()}", operation, 60)


def machine(vm_id: str, kind: MachineKind) -> CreateMachine:
    return CreateMachine(vm_id=vm_id, machine_kind=kind, memory_mib=256, vcpus=1, disk_mib=256)


@contextmanager
def in_database(world: World) -> Iterator[sqlite3.Connection]:
    """Open the controller's database from outside, in autocommit mode."""
    path = world.agent.state_dir / "controller" / "polydev.db"
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield connection
    finally:
        connection.close()
