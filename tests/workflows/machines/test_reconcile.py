"""Reconciliation of rows, workflows and hosts."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from controller_process import At
from controller_world import World, open_world

from polydev.shared.host_protocol import DestroyMachine, StopMachine

LIMIT_S = 60


def _in_database(world: World, *statements: str) -> None:
    """Change rows while the controller is stopped."""
    with closing(sqlite3.connect(world.agent.state_dir / "controller" / "polydev.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


async def _connected(world: World) -> str:
    session = await world.controller.wait_for_session(await world.controller.connect("codex"))
    assert session["status"] == "completed"
    return str(session["cliVM"]["vmId"])


async def _wait_for_row(world: World, vm_id: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        view = await world.controller.call("GET", f"/api/vm/{vm_id}")
        while view["status"] != status:
            path = f"/api/vm/{vm_id}?after={view['version']}&wait=20"
            view = await world.controller.call("GET", path)
    return dict(view)


async def test_stopped_machine_is_started_by_the_next_login(world: World) -> None:
    await world.controller.start()
    cli = await _connected(world)
    async with world.agent.host() as host:
        await host.run("stop-it", StopMachine(vm_id=cli), 30)
    await world.controller.end()
    await world.controller.start()
    await _wait_for_row(world, cli, "stopped")
    assert await _connected(world) == cli
    await _wait_for_row(world, cli, "running")
    await world.assert_clean(cli)


async def test_machine_lost_with_its_agent_is_started_by_the_next_login(
    world: World,
) -> None:
    await world.controller.start()
    cli = await _connected(world)
    await world.agent.kill()
    await world.agent.start()
    assert await _connected(world) == cli
    await world.assert_clean(cli)


async def test_machine_lost_by_its_host_is_replaced(
    world: World,
) -> None:
    await world.controller.start()
    lost = await _connected(world)
    async with world.agent.host() as host:
        await host.run("lose-it", DestroyMachine(vm_id=lost), 30)
    await world.controller.end()
    await world.controller.start()
    view = await _wait_for_row(world, lost, "failed")
    assert "lost" in view["error"]["message"]
    new = await _connected(world)
    assert new != lost
    await world.assert_clean(new)


async def test_session_with_an_interrupted_start_is_started(world: World) -> None:
    await world.controller.start()
    world.controller.order(At("create-machines", "before"))
    with world.controller.delayed_workflows():
        session_id = await world.controller.connect("codex")
    assert await world.controller.ended() == -9
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        (world.agent.state_dir / "controller" / name).unlink(missing_ok=True)
    await world.controller.start()
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "completed"


async def test_session_without_a_workflow_is_failed(world: World) -> None:
    await world.controller.start()
    session_id = await world.controller.connect("codex")
    cli = (await world.controller.wait_for_session(session_id))["cliVM"]["vmId"]
    await world.controller.end()
    _in_database(world, "UPDATE auth_sessions SET ended_at = NULL, status = 'running'")
    await world.controller.start()
    session = await world.controller.wait_for_session(session_id)
    assert (session["status"], session["error"]["code"]) == ("failed", "failed")
    async with asyncio.timeout(LIMIT_S):  # its machine goes, too
        while cli in await world.rows():
            await asyncio.sleep(0.2)
    await world.assert_clean()


async def test_machines_of_another_installation_stay(world: World) -> None:
    await world.controller.start()
    cli = await _connected(world)
    await world.controller.end()
    _in_database(
        world,
        *("DELETE FROM vms", "DELETE FROM session_steps", "DELETE FROM auth_sessions"),
        "DELETE FROM installation",
    )
    await world.controller.start()
    doctor = await world.controller.call("GET", "/api/doctor")
    assert [it["vm_id"] for it in doctor["checks"] if not it["ok"]] == [cli]
    assert list(await world.machines()) == [cli]


async def test_session_waits_for_a_host_agent_killed_during_creation() -> None:
    async with open_world({"boot_s": 3}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        await world.controller.wait_for_session(session_id, "running")
        async with asyncio.timeout(LIMIT_S), world.agent.host() as host:
            while len(await host.machines()) < 2:
                await asyncio.sleep(0.05)
        os.kill(world.agent.pid, signal.SIGKILL)
        await world.agent.ended()
        await world.agent.start()
        session = await world.controller.wait_for_session(session_id)
        assert session["status"] == "completed", session["error"]
        await world.assert_clean(session["cliVM"]["vmId"])
        assert not list(Path(world.agent.state_dir).glob("machines/*/token"))
