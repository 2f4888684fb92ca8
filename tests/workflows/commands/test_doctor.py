"""Findings of `polydev doctor` for problems that the tests cause.

Host agent and controller are real processes; machines are simulated where the guest does not
matter.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import pytest
from agent_process import AgentProcess
from api_users import create_user
from controller_process import KEY, TOKEN
from controller_world import FILES, World, open_world
from doctor_world import (
    LIMIT_S,
    all_ok,
    command,
    connect_cli,
    doctor,
    failed_check,
    in_database,
    machine,
    open_doctor_world,
    run_on_host,
)
from postgres import Cluster

from polydev.cli.supervisor.pidfile import Instance
from polydev.shared.domain import GuestFile, MachineKind, new_vm_id
from polydev.shared.host_protocol import DestroyMachine, RemoveFiles, WireFile, WriteFiles

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_doctor_world() as it:
        yield it


# -- healthy ---------------------------------------------------------------------------------------


async def test_healthy_installation_has_no_findings(world: World) -> None:
    await connect_cli(world)
    found = await doctor(world)
    assert all_ok(found), found
    assert {it["name"] for it in found} >= {
        *("root", "tools", "kernel", "port", "controller", "database", "host agent", "driver"),
        *("images", "namespace", "bridge", "TAPs", "firewall", "sockets", "disk space"),
        *("machines", "logins", "orphans"),
    }


# -- problems that users meet ----------------------------------------------------------------------


async def test_error_of_an_unready_machine_names_machine_limit_and_console() -> None:
    async with open_world({"becomes_ready": False}, POLYDEV_MACHINE_LIMIT_S="1") as world:
        await world.controller.start()
        view = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
        vm_id = view["vm_id"]
        view = await world.wait_for_machine(vm_id, "failed")
        message = view["error"]["message"]
        assert f"Machine {vm_id} was not ready within 1 s" in message
        assert f"logs/machines/{vm_id}/console.log" in message


async def test_missing_credentials_are_reported(world: World) -> None:
    vm_id = await connect_cli(world)
    await run_on_host(world, RemoveFiles(vm_id=vm_id, paths=[FILES["codex"]]))
    finding = failed_check(await doctor(world), "logins")
    assert finding["vm_id"] == vm_id
    assert f"are missing in machine {vm_id}: {FILES['codex']} does" in finding["message"]
    assert "polydev connect codex" in finding["hint"]


async def test_logged_out_cli_is_quoted(world: World) -> None:
    vm_id = await connect_cli(world)
    nothing = WireFile.of(GuestFile(FILES["codex"], b""))
    await run_on_host(world, WriteFiles(vm_id=vm_id, files=[nothing]))
    finding = failed_check(await doctor(world), "logins")
    assert finding["vm_id"] == vm_id
    assert f"in machine {vm_id} reports that it is not logged in" in finding["message"]
    assert f"polydev machine exec {vm_id} codex login status" in finding["hint"]


async def test_machine_lost_by_its_host_is_reported(
    world: World,
) -> None:
    vm_id = await connect_cli(world)
    await run_on_host(world, DestroyMachine(vm_id=vm_id))
    found = await doctor(world)
    message = failed_check(found, "machines")["message"]
    assert vm_id in message
    assert "running in the database, but its host has lost it" in message


async def test_leftover_browser_machine_is_reported(world: World) -> None:
    """Its session has ended, but its row still has the status `running`."""
    await connect_cli(world)
    vm_id = new_vm_id()
    await run_on_host(world, machine(vm_id, MachineKind.BROWSER))
    with in_database(world) as database:
        database.execute(
            "INSERT INTO vms (vm_id, user_id, ip_address, status, vm_type, created_at, session_id,"
            " memory_mib, vcpus, disk_mib, attempt, host_id) SELECT ?, user_id, ip_address,"
            " 'running', 'browser', created_at, (SELECT session_id FROM auth_sessions), memory_mib,"
            " vcpus, disk_mib, 0, host_id FROM vms WHERE vm_type = 'cli'",
            (vm_id,),
        )
    found = [it for it in await doctor(world) if it["ok"] is False and it["vm_id"] == vm_id]
    messages = " ".join(it["message"] for it in found)
    assert f"Browser machine {vm_id} is left over from ended session" in messages
    assert f"polydev machine destroy {vm_id}" in found[0]["hint"]


async def test_wrong_address_in_the_database_is_reported(world: World) -> None:
    vm_id = await connect_cli(world)
    with in_database(world) as database:
        database.execute("UPDATE vms SET ip_address = '192.168.100.99' WHERE vm_id = ?", (vm_id,))
    message = failed_check(await doctor(world), "machines")["message"]
    assert message.startswith(f"Pages show 192.168.100.99 for machine {vm_id}, but it has 192.")


async def test_machine_without_network_is_reported(world: World) -> None:
    vm_id = await connect_cli(world)
    async with world.agent.host() as host:
        [tap] = (await host.inventory()).taps
    await ip(world.agent, "link", "del", tap)
    finding = failed_check(await doctor(world), "TAPs")
    assert finding["vm_id"] == vm_id
    assert f"Machine {vm_id} runs without a network: its TAP {tap} is gone" in finding["message"]


async def test_hint_restores_the_network_of_a_machine(world: World) -> None:
    vm_id = await connect_cli(world)
    async with world.agent.host() as host:
        [tap] = (await host.inventory()).taps
    await ip(world.agent, "link", "del", tap)
    for line in (
        failed_check(await doctor(world), "TAPs")["hint"].partition(": ")[2].split(", then ")
    ):
        assert line.split()[-1] == vm_id
        process = await command(world, *line.split()[1:])
        _, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert process.returncode == 0, err.decode()
    assert all_ok(await doctor(world))


async def test_flushed_firewall_rules_are_reported(world: World) -> None:
    await ip(world.agent, "netns", "exec", world.agent.netns, "nft", "flush", "ruleset", here=True)
    finding = failed_check(await doctor(world), "firewall")
    assert "is gone (another program flushed the rules)" in finding["message"]
    assert "polydev down" in finding["hint"]


# -- partial failures ------------------------------------------------------------------------------


async def test_dead_host_agent_is_reported_and_its_host_checked(
    world: World,
) -> None:
    vm_id = await connect_cli(world)
    await world.agent.kill()
    found = await doctor(world)
    local = [it for it in found if it["name"] == "host agent" and it["host_id"] is None]
    assert "has died: no process answers" in local[0]["message"]
    assert "(stale socket)" in local[0]["message"]
    assert any(it["name"] == "machines" and it["vm_id"] == vm_id for it in found), found
    assert any(it["name"] == "firewall" and it["ok"] for it in found)
    assert any(it["name"] == "database" and it["ok"] for it in found)


async def test_failed_controller_start_is_reported_with_its_log(world: World) -> None:
    await world.controller.kill()
    log = world.agent.state_dir / "logs" / "controller.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "polydev.controller"),
            env=world.controller.env
            | {"PYTHONPATH": world.agent.env["PYTHONPATH"], "ENCRYPTION_KEY": f"not {KEY}"},
            stderr=output,
        )
        assert await asyncio.wait_for(process.wait(), LIMIT_S) == 1
    found = await doctor(world)
    finding = failed_check(found, "controller")
    assert "does not answer" in finding["message"]
    assert "ENCRYPTION_KEY" in finding["message"]
    assert "polydev up" in finding["hint"]
    assert any(it["name"] == "host agent" and it["ok"] for it in found)
    assert failed_check(found, "port")["message"].startswith("No process listens on port")


async def test_foreign_program_on_the_port_is_named_and_gets_no_token(
    world: World,
) -> None:
    await world.controller.kill()
    script = (
        "import socket; l = socket.create_server(('127.0.0.1', %d)); print(1, flush=True)\n"
        "while True: print(l.accept()[0].recv(9999), flush=True)"
    )
    wrong_owner_error = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"),
        *("/usr/bin/python3", "-c", script % world.controller.port),
        stdout=asyncio.subprocess.PIPE,
    )
    assert wrong_owner_error.stdout is not None
    await wrong_owner_error.stdout.readline()
    try:
        finding = failed_check(await doctor(world), "port")
        assert "nobody (uid 65534), python3, process" in finding["message"]
        assert f"sport = :{world.controller.port}" in finding["hint"]
        heard = await wrong_owner_error.stdout.readline()
    finally:
        wrong_owner_error.kill()
        await wrong_owner_error.wait()
    assert heard.strip() == b"b''", "the token went to a stranger"


async def test_locked_database_is_reported(world: World) -> None:
    with in_database(world) as holding:
        holding.execute("BEGIN EXCLUSIVE")
        finding = failed_check(await doctor(world), "database")
        assert "is locked: a write waited" in finding["message"]
        assert "stop that program" in finding["hint"]


async def test_missing_migration_is_reported(world: World) -> None:
    with in_database(world) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    found = await doctor(world)
    assert "older than this version" in failed_check(found, "database")["message"]


async def test_unreachable_database_server_is_reported(
    postgres: Cluster, postgresql_url: str
) -> None:
    async with open_doctor_world(DATABASE_URL=postgresql_url) as world:
        assert all_ok(await doctor(world))
        # Without its database, the controller soon exits: doctor must have started before.
        waiting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", WAITING_DOCTOR),
            env={
                **world.agent.env,
                "PORT": str(world.controller.port),
                "POLYDEV_ADMIN_TOKEN": TOKEN,
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert waiting.stdout is not None
        assert await waiting.stdout.readline() == b"ready\n"
        postgres.stop()
        try:
            out, _ = await asyncio.wait_for(waiting.communicate(b"\n"), LIMIT_S)
        finally:
            postgres.start()
        found = [it for it in json.loads(out)["checks"] if it["ok"] is False]
        text = " ".join(it["message"] + it["hint"] for it in found)
        assert "database" in text.lower()
        assert "DATABASE_URL" in text
        assert "polydev_app" not in text, "only the variable's name, nothing of the URL"


async def test_controller_with_an_expired_lease_is_reported(
    postgres: Cluster, postgresql_url: str
) -> None:
    async with open_doctor_world(DATABASE_URL=postgresql_url) as world:
        with postgres.superuser(postgresql_url) as administrator:
            # The second row claims the takeover, so that the controller does not clean it up.
            administrator.execute(
                "INSERT INTO controllers SELECT words || 'gone-controller', until, started_at,"
                " version, key_ids FROM controllers, (VALUES ('', now()),"
                " ('takes over ', now() + interval '1 hour')) AS row (words, until)"
            )
            finding = failed_check(await doctor(world), "leases")
    assert "The lease of controller gone-controller has expired" in finding["message"]
    assert "polydev up" in finding["hint"]


async def test_host_that_never_answered_is_reported(world: World) -> None:
    with in_database(world) as database:
        database.execute(
            "INSERT INTO hosts SELECT 'attic', '/run/none.sock', state, 0, 0, 0, 0, '', '', '',"
            " NULL, created_at FROM hosts"
        )
    async with asyncio.timeout(LIMIT_S):
        while all_ok(found := await doctor(world)):
            pass
    finding = failed_check(found, "host agent")
    assert finding["host_id"] == "attic"
    assert "it never answered" in finding["message"]


async def test_orphan_on_the_host_is_reported(world: World) -> None:
    vm_id, its_own = new_vm_id(), machine(new_vm_id(), MachineKind.BROWSER)
    await run_on_host(world, machine(vm_id, MachineKind.CLI))
    await run_on_host(world, its_own.model_copy(update={"labels": {"purpose": "warm-waiting"}}))
    finding = failed_check(await doctor(world), "orphans")
    assert finding["message"] == f"Machine {vm_id} is on its host, but not in the database"


async def test_skipped_checks_are_listed_without_root(world: World) -> None:
    world.agent.state_dir.parent.chmod(0o755)
    Instance(world.agent.state_dir).claim()
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-c", NOT_ROOT),
        env={**world.agent.env, "PORT": str(world.controller.port), "POLYDEV_ADMIN_TOKEN": TOKEN},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert out, err.decode()
    found = json.loads(out)["checks"]
    left_out = {it["name"]: it["message"] for it in found if it["ok"] is None}
    assert left_out.keys() >= {"root", "polydev", "host agent"}
    assert all(it["hint"] for it in found if it["ok"] is None)


async def test_user_sees_only_their_own_findings(world: World) -> None:
    others = await connect_cli(world)
    await run_on_host(world, DestroyMachine(vm_id=others))
    user = await create_user(world.controller, "somebody")
    client = await user.by_token("read", "machines")
    async with client:
        made = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
        answer = await client.get(f"/api/vm/{made['vm_id']}")
        while answer.json()["status"] == "creating":
            path = f"/api/vm/{made['vm_id']}?after={answer.json()['version']}&wait=20"
            answer = await client.get(path)
        well_so_far = (await client.get("/api/doctor")).json()
        await run_on_host(world, DestroyMachine(vm_id=made["vm_id"]))
        answer = (await client.get("/api/doctor")).json()
    assert well_so_far["ok"], well_so_far
    assert {it["name"] for it in answer["checks"]} == {"controller", "machines", "logins"}
    [lost] = [it for it in answer["checks"] if not it["ok"]]
    assert lost["vm_id"] == made["vm_id"]
    assert others not in json.dumps(answer)


WAITING_DOCTOR = """
import sys
from polydev.cli.doctor import command
from polydev.cli.main import run
print("ready", flush=True)
sys.stdin.readline()
sys.argv[1:] = ["doctor", "--json"]
run()
"""

NOT_ROOT = f"""
import sys
sys.path[:] = {sys.path!r}
sys.argv[1:] = ["doctor", "--json"]
from polydev.cli.main import run
run()
"""


async def ip(agent: AgentProcess, *arguments: str, here: bool = False) -> None:
    inside = () if here else ("-n", agent.netns)
    process = await asyncio.create_subprocess_exec("ip", *inside, *arguments)
    assert await process.wait() == 0
