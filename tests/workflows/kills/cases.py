"""The kill matrix's cases: one entry per saga, without its steps.

The controller reports the steps of each saga, so the matrix also covers a new step. A workflow
without an entry here fails a test of the matrix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from api_users import create_user
from controller_world import LIMIT_S, World

from polydev.shared.errors import NoSuchFile

Begin = Callable[[World, str], Awaitable[str]]
Settle = Callable[[World, str], Awaitable[None]]


async def _nothing(world: World) -> str:
    return ""


@dataclass(frozen=True)
class Case:
    """A workflow, with functions to prepare it, begin it and check its outcome."""

    name: str
    begin: Begin
    """Takes the result of `prepare`; returns the subject for the other functions."""
    completed: Settle
    """Waits for completion, checks the result and removes it."""
    failed: Settle
    """Waits for failure and undo, checks the result and removes what `prepare` created."""
    prepare: Callable[[World], Awaitable[str]] = field(default=_nothing)
    is_on_both: bool = False
    """True if `make test` also runs it on PostgreSQL: the sagas that differ most."""


# -- connect -----------------------------------------------------------------------------------


async def _connect(world: World, _: str) -> str:
    return await world.controller.connect("codex")


async def _connected(world: World, session_id: str) -> None:
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "completed", session["error"]
    cli = session["cliVM"]["vmId"]
    await world.assert_clean(cli)
    assert await world.credentials(cli, "codex")
    await world.destroy(cli)


async def _not_connected(world: World, session_id: str) -> None:
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "failed", session
    assert session["error"]["code"] == "login-failed"
    assert session["cliVM"] is None


# -- connect by key ------------------------------------------------------------------------------

API_KEY = "standin-key-0123456789abcdefghijklmnop"


async def _connect_by_key(world: World, _: str) -> str:
    asked = {"provider": "codex", "apiKey": API_KEY}
    return str((await world.controller.call("POST", "/api/auth/key", asked))["sessionId"])


async def _connected_by_key(world: World, session_id: str) -> None:
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "completed", session["error"]
    cli = session["cliVM"]["vmId"]
    await world.assert_clean(cli)
    stored = await world.credentials(cli, "codex")
    assert stored == {"auth_mode": "apikey", "OPENAI_API_KEY": API_KEY}
    (listed,) = await world.controller.call("GET", "/api/credentials")
    assert (listed["kind"], listed["vmId"], listed["validity"]) == ("api_key", cli, "valid")
    await world.destroy(cli)


async def _not_connected_by_key(world: World, session_id: str) -> None:
    await _not_connected(world, session_id)
    listed = await world.controller.call("GET", "/api/credentials")
    assert [it for it in listed if it["vmId"] is None] == []


# -- machines ----------------------------------------------------------------------------------


async def _created(world: World) -> str:
    vm_id = await _create(world, "")
    await world.wait_for_machine(vm_id, "running")
    return vm_id


async def _stopped(world: World) -> str:
    vm_id = await _stop(world, await _created(world))
    await world.wait_for_machine(vm_id, "stopped")
    return vm_id


async def _create(world: World, _: str) -> str:
    view = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    return str(view["vm_id"])


async def _destroy(world: World, vm_id: str) -> str:
    await world.controller.call("POST", "/api/vm/destroy", {"vmId": vm_id})
    return vm_id


async def _stop(world: World, vm_id: str) -> str:
    await world.controller.call("POST", f"/api/vm/{vm_id}/stop")
    return vm_id


async def _start(world: World, vm_id: str) -> str:
    await world.controller.call("POST", f"/api/vm/{vm_id}/start")
    return vm_id


async def _hibernated(world: World) -> str:
    vm_id = await _hibernate(world, await _created(world))
    await world.wait_for_machine(vm_id, "hibernated")
    return vm_id


async def _hibernate(world: World, vm_id: str) -> str:
    await world.controller.call("POST", f"/api/vm/{vm_id}/hibernate")
    return vm_id


async def _resume(world: World, vm_id: str) -> str:
    await world.controller.call("POST", f"/api/vm/{vm_id}/resume")
    return vm_id


async def _is_hibernated(world: World, vm_id: str) -> None:
    view = await world.wait_for_machine(vm_id, "hibernated")
    assert view["sleep"]["memory_on_disk_bytes"] > 0
    assert view["sleep"]["slept_why"] == "requested"
    assert await world.states() == {vm_id: "hibernated"}
    await _remove(world, vm_id)


async def _is_resumed(world: World, vm_id: str) -> None:
    view = await world.wait_for_machine(vm_id, "running")
    sleep = view["sleep"]
    assert (sleep["woke_how"], sleep["boot_reason"], sleep["trouble"]) == ("resumed", "", "")
    assert sleep["memory_on_disk_bytes"] is None
    await _is_running(world, vm_id)


async def _is_running(world: World, vm_id: str) -> None:
    await world.wait_for_machine(vm_id, "running")
    assert await world.states() == {vm_id: "running"}
    await _remove(world, vm_id)


async def _is_stopped(world: World, vm_id: str) -> None:
    await world.wait_for_machine(vm_id, "stopped")
    assert await world.states() == {vm_id: "stopped"}
    await _remove(world, vm_id)


async def _is_gone(world: World, vm_id: str) -> None:
    await world.wait_for_machine(vm_id, "destroyed")


async def _creation_failed(world: World, vm_id: str) -> None:
    view = await world.wait_for_machine(vm_id, "failed")
    assert view["error"]["code"] == "login-failed", view["error"]
    assert await world.states() == {}
    await _remove(world, vm_id)


async def _is_left(world: World, vm_id: str) -> None:
    view = await world.wait_for_machine(vm_id, "failed", "running", "stopped", "hibernated")
    assert list(await world.states()) == [view["vm_id"]]
    if "hibernated" in (states := (view["status"], (await world.states())[vm_id])):
        assert states == ("hibernated", "hibernated"), "its row agrees with its host"
    await _remove(world, vm_id)


async def _remove(world: World, vm_id: str) -> None:
    await world.destroy(vm_id)


# -- credentials -------------------------------------------------------------------------------


async def _delivered(world: World) -> str:
    """A machine with a credential; the subjects below are machines, which have one each."""
    session = await world.controller.wait_for_session(await world.controller.connect("codex"))
    assert session["status"] == "completed", session["error"]
    return str(session["cliVM"]["vmId"])


async def _revoke(world: World, vm_id: str) -> str:
    (listed,) = await world.controller.call("GET", "/api/credentials")
    assert listed["vmId"] == vm_id
    await world.controller.call("POST", f"/api/credentials/{listed['credentialId']}/revoke")
    return vm_id


async def _is_revoked(world: World, vm_id: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await world.controller.call("GET", "/api/credentials"):
            await asyncio.sleep(0.05)
    with pytest.raises(NoSuchFile):
        await world.credentials(vm_id, "codex")
    await _remove(world, vm_id)


# -- users -------------------------------------------------------------------------------------


async def _user_with_everything(world: World) -> str:
    """A user with a machine, a credential, a sign-in and a token."""
    user = await create_user(world.controller, "ann")
    async with await user.by_token("read", "connect") as client:
        asked = (await client.post("/api/auth/start", json={"provider": "codex"})).json()
        path = f"/api/auth/session/{asked['sessionId']}"
        async with asyncio.timeout(LIMIT_S):
            view = (await client.get(path)).json()
            while view["endedAt"] is None:
                view = (await client.get(f"{path}?after={view['version']}&wait=20")).json()
    assert view["status"] == "completed", view
    return user.user_id


async def _delete_user(world: World, user_id: str) -> str:
    await world.controller.call("DELETE", f"/api/admin/people/{user_id}")
    return user_id


async def _user_is_gone(world: World, user_id: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await _is_listed(world, user_id):
            await asyncio.sleep(0.05)
    assert await world.states() == {}


async def _is_listed(world: World, user_id: str) -> bool:
    users = await world.controller.call("GET", "/api/admin/people")
    return any(user["id"] == user_id for user in users)


CASES = (
    Case("connect", _connect, _connected, _not_connected, is_on_both=True),
    Case("connect-by-key", _connect_by_key, _connected_by_key, _not_connected_by_key),
    Case("create-machine", _create, _is_running, _creation_failed),
    Case("destroy-machine", _destroy, _is_gone, _is_gone, _created),
    Case("stop-machine", _stop, _is_stopped, _is_left, _created),
    Case("revoke-credential", _revoke, _is_revoked, _is_revoked, _delivered),
    Case(
        "delete-person",
        _delete_user,
        _user_is_gone,
        _user_is_gone,
        _user_with_everything,
        is_on_both=True,
    ),
    Case("start-machine", _start, _is_running, _is_left, _stopped),
    Case("hibernate-machine", _hibernate, _is_hibernated, _is_left, _created, is_on_both=True),
    Case("resume-machine", _resume, _is_resumed, _is_left, _hibernated),
)

ELSEWHERE = {
    "rotate-keys": "test_rotation.py: no saga; it reseals row by row",
}
"""Workflows with their own tests of kills, failures and repeats, and why."""
