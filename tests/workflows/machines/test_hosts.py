"""Several hosts: placement by free capacity, and recovery from dead hosts."""

from __future__ import annotations

import asyncio

import pytest
from controller_process import At
from hosts_world import LIMIT_S, QUICKLY, HostsWorld, hosts_world

SMALL = {"POLYDEV_HOST_MEMORY_MIB": "3200"}  # a browser machine and a CLI machine, and no more
LARGE = {"POLYDEV_HOST_MEMORY_MIB": "8192"}
BROWSER_ONLY = {"POLYDEV_HOST_MEMORY_MIB": "2048"}


async def _host_id(world: HostsWorld, vm_id: str) -> str:
    [name] = [name for name, views in (await world.machines()).items() if vm_id in views]
    return name


async def _wait_until_on(world: HostsWorld, name: str, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len((await world.machines())[name]) != count:
            await asyncio.sleep(0.1)


async def test_session_completes_on_the_host_with_capacity() -> None:
    async with hosts_world([{"POLYDEV_HOST_MEMORY_MIB": "100"}, LARGE]) as world:
        await world.controller.start()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert session["status"] == "completed", session["error"]
        cli = session["cliVM"]["vmId"]
        assert await _host_id(world, cli) == "b"
        await world.wait_until_clean(cli)
        listed = await world.controller.call("GET", "/api/admin/hosts")
        assert [it["hostId"] for it in listed] == ["a", "b"]


async def test_machines_of_a_session_may_be_on_two_hosts() -> None:
    cli_only = {"POLYDEV_HOST_MEMORY_MIB": "1500"}
    async with hosts_world([cli_only, BROWSER_ONLY]) as world:
        await world.controller.start()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert session["status"] == "completed", session["error"]
        await world.wait_until_clean(session["cliVM"]["vmId"])


async def test_draining_host_gets_no_machines() -> None:
    async with hosts_world([LARGE, SMALL]) as world:
        await world.controller.start()
        await world.controller.call("POST", "/api/admin/hosts/a/drain", {"reason": "repairs"})
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert await _host_id(world, session["cliVM"]["vmId"]) == "b"


@pytest.mark.parametrize("step", ["create-machines", "browser-ready", "start-login"])
async def test_session_moves_from_a_dead_host(step: str) -> None:
    """Another host replaces its machines; they are removed when it returns."""
    async with hosts_world([LARGE, SMALL], {"boot_s": 0.5, "login_s": 1}, **QUICKLY) as world:
        await world.controller.start()
        world.controller.order(At(step, "before"))
        with world.controller.delayed_workflows():
            session_id = await world.controller.connect("codex")
        await world.controller.ended()
        await world.agents["a"].kill()
        await world.controller.start()
        session = await world.controller.wait_for_session(session_id)
        assert session["status"] == "completed", session["error"]
        moved = [it for it in await world.audit("placement") if it["action"] == "machine.move"]
        assert moved
        assert all("does not answer" in it["reason"] for it in moved)
        cli = session["cliVM"]["vmId"]
        assert await _host_id(world, cli) == "b"
        await world.agents["a"].start()
        await world.controller.end()
        await world.controller.start()  # the reconciler runs at its start
        await world.wait_until_clean(cli)


async def test_login_fails_clearly_when_the_cli_machines_host_is_dead() -> None:
    async with hosts_world([LARGE, BROWSER_ONLY], **QUICKLY) as world:
        await world.controller.start()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        cli = session["cliVM"]["vmId"]
        await world.agents["a"].kill()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert (session["status"], session["error"]["code"]) == ("failed", "host-lost")
        assert cli in session["error"]["message"]
        await world.agents["a"].start()
        again = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert (again["status"], again["cliVM"]["vmId"]) == ("completed", cli)
        await world.wait_until_clean(cli)


async def test_login_on_a_dead_host_ends_before_the_user_limit() -> None:
    hosts = [SMALL, {"POLYDEV_HOST_MEMORY_MIB": "0"}]
    async with hosts_world(hosts, {"login_end": "never"}, **QUICKLY) as it:
        await it.controller.start()
        session_id = await it.controller.connect("codex")
        await it.controller.wait_for_session(session_id, "waiting_for_person")
        await it.agents["a"].kill()
        session = await it.controller.wait_for_session(session_id)
        assert (session["status"], session["error"]["code"]) == ("failed", "host-lost")
        await it.agents["a"].start()
        await it.controller.end()
        await it.controller.start()
        await it.wait_until_clean()
