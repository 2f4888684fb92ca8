"""Cleanup of orphans: only of this installation, with reasons in the audit log."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from contextlib import closing
from typing import Any

from controller_world import LIMIT_S, World

from polydev.shared.domain import MachineKind, VmId, new_vm_id
from polydev.shared.host_protocol import CreateMachine, Swept

_SIZE = {"memory_mib": 256, "vcpus": 1, "disk_mib": 256}


def _database(world: World) -> sqlite3.Connection:
    path = world.agent.state_dir / "controller" / "polydev.db"
    return sqlite3.connect(path, isolation_level=None)


def _execute(world: World, *statements: str) -> None:
    with closing(_database(world)) as database:
        for statement in statements:
            database.execute(statement)


def _installation(world: World) -> str:
    with closing(_database(world)) as database:
        return str(database.execute("SELECT installation_id FROM installation").fetchone()[0])


async def _start_controller(world: World) -> None:
    await world.controller.start()
    await world.controller.call("GET", "/health")


async def _restart_controller(world: World) -> None:
    """Restart the controller, whose reconciler runs at its start."""
    await world.controller.end()
    await _start_controller(world)


async def _wait_until_gone(world: World, *vm_ids: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while set(vm_ids) & set(await world.states()):
            await asyncio.sleep(0.2)


async def _audit_entries_of(world: World, action: str) -> list[dict[str, Any]]:
    found = await world.controller.call("GET", "/api/admin/audit")
    return [it for it in found if (it["via"], it["action"]) == ("reconciler", action)]


async def _create_on_host(world: World, **labels: str) -> VmId:
    vm_id = new_vm_id()
    operation = CreateMachine(vm_id=vm_id, machine_kind=MachineKind.CLI, labels=labels, **_SIZE)
    async with world.agent.host() as host:
        await host.run(f"made-{vm_id}", operation, LIMIT_S)
    return vm_id


async def test_machine_without_a_row_is_destroyed_if_its_label_is_ours(
    world: World,
) -> None:
    await _start_controller(world)
    await world.controller.end()  # its reconciler might find a machine in creation
    ours = await _create_on_host(world, installation=_installation(world))
    strangers = await _create_on_host(world, installation="another one")
    unlabelled = await _create_on_host(world)
    await _start_controller(world)
    await _wait_until_gone(world, ours)
    assert set(await world.states()) == {strangers, unlabelled}
    [entry] = await _audit_entries_of(world, "machine.destroy")
    assert entry["subject"] == ours
    assert "label" in entry["reason"]
    doctor = await world.controller.call("GET", "/api/doctor")
    orphans = {it["vm_id"] for it in doctor["checks"] if it["name"] == "orphans" and not it["ok"]}
    assert orphans == {strangers, unlabelled}


async def test_machine_with_a_destroyed_row_is_destroyed(world: World) -> None:
    await _start_controller(world)
    made = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    await world.wait_for_machine(made["vm_id"], "running")
    _execute(world, "UPDATE vms SET status = 'destroyed'")
    await _restart_controller(world)
    await _wait_until_gone(world, made["vm_id"])
    [entry] = await _audit_entries_of(world, "machine.destroy")
    assert "its row is destroyed" in entry["reason"]
    await world.assert_clean()


async def test_orphan_tap_is_removed_and_others_stay(world: World) -> None:
    await _start_controller(world)
    made = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    await world.wait_for_machine(made["vm_id"], "running")
    add = ("ip", "-n", world.agent.netns, "tuntap", "add", "dev", "pd240", "mode", "tap")
    subprocess.run(add, check=True)
    await _restart_controller(world)
    async with asyncio.timeout(LIMIT_S), world.agent.host() as host:
        while "pd240" in (await host.inventory()).taps:
            await asyncio.sleep(0.2)
    await world.assert_clean(made["vm_id"])
    async with asyncio.timeout(LIMIT_S):
        while not (entries := await _audit_entries_of(world, "host.sweep")):
            await asyncio.sleep(0.2)
    assert "TAPs pd240" in entries[0]["reason"]


async def test_orphan_folder_is_removed_unless_its_record_is_unreadable(
    world: World,
) -> None:
    await _start_controller(world)
    half, broken = (world.agent.state_dir / "machines" / new_vm_id() for _ in range(2))
    for folder in (half, broken):
        folder.mkdir()
        (folder / "disk.img").write_bytes(b"x" * 4096)
    (broken / "machine.json").write_text("{ not json")
    await _restart_controller(world)
    async with asyncio.timeout(LIMIT_S):
        while half.exists():
            await asyncio.sleep(0.2)
    assert broken.exists()


async def test_cleanup_keeps_machines_that_are_being_created(world: World) -> None:
    await _start_controller(world)

    async def sweep() -> None:
        async with world.agent.host() as host:
            while True:
                swept = await host.sweep()
                assert swept == Swept()

    sweeping = asyncio.create_task(sweep())
    made = [
        (await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"}))["vm_id"]
        for _ in range(8)
    ]
    for vm_id in made:
        await world.wait_for_machine(vm_id, "running")
    for vm_id in made[:4]:
        await world.destroy(vm_id)
    assert not sweeping.done(), sweeping.result()
    sweeping.cancel()
    await world.assert_clean(*made[4:])


async def test_browser_machine_of_an_ended_session_is_destroyed(world: World) -> None:
    await _start_controller(world)
    session_id = await world.controller.connect("codex")
    cli = (await world.controller.wait_for_session(session_id))["cliVM"]["vmId"]
    made = await world.controller.call("POST", "/api/vm/create", {"vmType": "browser"})
    await world.wait_for_machine(made["vm_id"], "running")
    _execute(world, f"UPDATE vms SET session_id = '{session_id}' WHERE vm_id = '{made['vm_id']}'")
    await _restart_controller(world)
    await _wait_until_gone(world, made["vm_id"])
    [entry] = await _audit_entries_of(world, "machine.destroy")
    assert "the login that created it is completed" in entry["reason"]
    await world.wait_for_machine(made["vm_id"], "destroyed")
    await world.assert_clean(cli)


async def test_rows_that_differ_from_the_host_are_corrected(world: World) -> None:
    """Rows determine the host's used capacity: a corrected row counts again."""
    await _start_controller(world)
    made = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    await world.wait_for_machine(made["vm_id"], "running")
    [before] = await world.controller.call("GET", "/api/admin/hosts")
    for state in ("stopped", "stopping", "resuming"):
        _execute(world, f"UPDATE vms SET status = '{state}'")
        await _restart_controller(world)
        wanted = "stopped" if state == "stopping" else "running"
        await world.wait_for_machine(made["vm_id"], wanted)
        if wanted == "stopped":
            await world.controller.call("POST", f"/api/vm/{made['vm_id']}/start")
            await world.wait_for_machine(made["vm_id"], "running")
    [after] = await world.controller.call("GET", "/api/admin/hosts")
    assert after["memoryTakenMib"] == before["memoryTakenMib"] > 0
    await world.assert_clean(made["vm_id"])
