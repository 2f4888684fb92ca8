"""`polydev doctor` as somebody types it, in a world whose reconciler does not come in between."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from controller_process import TOKEN
from controller_world import World, a_world

from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine

LIMIT_S = 90
NEVER = "3000"
"""A period of the reconciler that does not come: it would put right what doctor is to find."""


@asynccontextmanager
async def started(**settings: str) -> AsyncIterator[World]:
    async with a_world(**{"POLYDEV_RECONCILE_PERIOD_S": NEVER, **settings}) as world:
        await world.controller.start()
        await world.controller.ask("GET", "/health")
        yield world


async def command(world: World, *words: str, **env: str) -> asyncio.subprocess.Process:
    """`polydev ...`, by the administrator of this world."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "polydev.cli", *words),
        env={
            **world.agent.env,
            **{"PORT": str(world.controller.port), "POLYDEV_ADMIN_TOKEN": TOKEN},
            **env,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def doctor(world: World, *words: str, **env: str) -> list[dict[str, Any]]:
    """What the command finds. Its exit code says whether anything is wrong."""
    process = await command(world, "doctor", "--json", *words, **env)
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert out, err.decode()
    answer = json.loads(out)
    wrong = [it for it in answer["checks"] if it["ok"] is False]
    assert process.returncode == bool(wrong)
    assert answer["ok"] is not bool(wrong)
    found: list[dict[str, Any]] = answer["checks"]
    return found


def wrong(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one finding of that name that is wrong; like each that is, it says what to do."""
    bad = [it for it in found if it["ok"] is False and it["name"] != "polydev"]  # `up` runs nowhere
    assert all(it["hint"] for it in bad), bad
    [it] = [it for it in bad if it["name"] == name]
    return it


def well(found: list[dict[str, Any]]) -> bool:
    return all(it["ok"] for it in found if it["name"] != "polydev")


async def connected(world: World, provider: str = "codex") -> str:
    """A login that is complete: the CLI machine's id."""
    session_id = await world.controller.connect(provider)
    view = await world.controller.until(session_id, "completed")
    assert view["status"] == "completed", view
    return str(view["cliVM"]["vmId"])


async def asked(world: World, operation: Any) -> None:
    """Have the host do something behind the controller's back."""
    async with world.agent.host() as host:
        await host.run(f"test-{new_vm_id()}", operation, 60)


def machine(vm_id: str, kind: MachineKind) -> CreateMachine:
    return CreateMachine(vm_id=vm_id, machine_kind=kind, memory_mib=256, vcpus=1, disk_mib=256)


@contextmanager
def in_database(world: World) -> Iterator[sqlite3.Connection]:
    """The controller's database, as another program sees it: each statement counts at once."""
    path = world.agent.state_dir / "controller" / "polydev.db"
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield connection
    finally:
        connection.close()
