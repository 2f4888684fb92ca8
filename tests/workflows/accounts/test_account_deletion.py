"""Deletion of a user and all their resources.

The kill matrix tests that it completes after kills.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from api_users import PASSWORD, TestUser, create_user
from controller_process import ENDS
from controller_world import World, open_world

from polydev.controller.store.engine.database import open_database
from polydev.controller.store.tables import metadata

PASTE = {"callbackUrl": "http://localhost:1455/auth/callback?code=x&state=x"}


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world({"login_end": "never"}, DATABASE_URL=database_url) as it:
        await it.controller.start()
        yield it


async def _wait_for_session(
    client: httpx.AsyncClient, session_id: str, *statuses: str
) -> dict[str, Any]:
    path = f"/api/auth/session/{session_id}"
    async with asyncio.timeout(60):
        view = (await client.get(path)).json()
        while view["status"] not in {*statuses, *ENDS}:
            view = (await client.get(f"{path}?after={view['version']}&wait=20")).json()
    return dict(view)


async def _wait_until_running(client: httpx.AsyncClient, vm_id: str) -> None:
    async with asyncio.timeout(60):
        view = (await client.get(f"/api/vm/{vm_id}")).json()
        while view["status"] != "running":
            view = (await client.get(f"/api/vm/{vm_id}?after={view['version']}&wait=20")).json()


async def _populate(world: World, user: TestUser) -> str:
    """Give a user a credential, machines, an active login and stored requests."""
    client = await user.by_token("read", "connect", "machines", "account")
    async with client:
        asked = await client.post("/api/auth/start", json={"provider": "codex"})
        session_id = asked.json()["sessionId"]
        await _wait_for_session(client, session_id, "waiting_for_person")
        await client.post(f"/api/auth/session/{session_id}/input", json=PASTE)
        done = await _wait_for_session(client, session_id)
        assert done["status"] == "completed", done
        headers = {"Idempotency-Key": "one-more"}
        made = await client.post("/api/vm/create", json={"vmType": "cli"}, headers=headers)
        await _wait_until_running(client, made.json()["vm_id"])
        going_on = await client.post("/api/auth/start", json={"provider": "claude_code"})
        await _wait_for_session(client, going_on.json()["sessionId"], "waiting_for_person")
    return str(done["cliVM"]["vmId"])


async def _delete(user: TestUser, password: str | None) -> httpx.Response:
    async with user.by_cookie() as client:
        body = json.dumps({"password": password})
        headers = {"content-type": "application/json"}
        return await client.request("DELETE", "/api/account", content=body, headers=headers)


async def _wait_until_deleted(world: World, user_id: str) -> None:
    async with asyncio.timeout(90):
        while any(
            it["id"] == user_id for it in await world.controller.call("GET", "/api/admin/people")
        ):
            await asyncio.sleep(0.1)


async def _rows_with(world: World, *texts: str) -> dict[str, list[str]]:
    """Rows that contain one of the texts in any column, by table."""
    assert world.url is not None
    database = open_database(world.url, Path("/nonexistent"))
    found: dict[str, list[str]] = {}
    try:
        async with database.read() as connection:
            for table in metadata.sorted_tables:
                for row in await connection.execute(sa.select(table)):
                    text = repr(tuple(row))
                    if any(it in text for it in texts):
                        found.setdefault(table.name, []).append(text)
    finally:
        await database.close()
    return found


def _archived_logs(world: World, vm_id: str) -> Path:
    return world.agent.state_dir / "logs" / "machines" / vm_id


async def test_deletion_removes_all_of_the_user_and_nothing_of_others(world: World) -> None:
    ann = await create_user(world.controller, "ann")
    ben = await create_user(world.controller, "ben")
    vm_id = await _populate(world, ann)
    bens = await _populate(world, ben)
    theirs = await ben.by_token("read")
    before = (await theirs.get("/api/vm/list")).json()
    _archived_logs(world, vm_id).mkdir(parents=True)
    (_archived_logs(world, vm_id) / "console.log").write_text("its last words")

    refused = await _delete(ann, "not the password")
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
    client = await ann.by_token("account", "read")
    assert (await client.request("DELETE", "/api/account", json={})).status_code == 403
    answer = await _delete(ann, PASSWORD)
    assert answer.status_code == 202, answer.text
    assert answer.json()["deletingAt"] is not None
    assert (await client.get("/api/vm/list")).status_code == 401
    async with ann.by_cookie() as browser:
        assert (await browser.get("/api/vm/list")).status_code == 401

    await _wait_until_deleted(world, ann.user_id)
    assert set(await _rows_with(world, ann.user_id, ann.email)) == {"audit_log"}
    assert not await _rows_with(world, ann.email)
    assert not _archived_logs(world, vm_id).exists()
    machines = await world.machines()
    assert vm_id not in machines
    assert bens in machines
    assert (await theirs.get("/api/vm/list")).json() == before
    for it in (theirs, client):
        await it.aclose()


async def test_deletion_completes_when_an_absent_host_returns(world: World) -> None:
    ann = await create_user(world.controller, "ann")
    await _populate(world, ann)
    await world.agent.kill()
    for _ in range(2):
        asked = await world.controller.call("DELETE", f"/api/admin/people/{ann.user_id}")
        assert asked["deletingAt"] is not None
    await world.agent.start()
    await _wait_until_deleted(world, ann.user_id)
    assert await world.machines() == {}
    async with world.controller.client() as client:
        answer = await client.delete(f"/api/admin/people/{ann.user_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "no-such-person")


async def test_local_administrator_is_not_deleted(world: World) -> None:
    async with world.controller.client() as client:
        answer = await client.delete("/api/admin/people/admin")
        assert (answer.status_code, answer.json()["code"]) == (403, "not-allowed")


async def test_user_under_deletion_starts_nothing(world: World) -> None:
    ann = await create_user(world.controller, "ann")
    await _populate(world, ann)
    await world.agent.kill()
    await world.controller.call("DELETE", f"/api/admin/people/{ann.user_id}")
    async with world.controller.client() as client:
        for path, body in (
            ("/api/vm/create", {"vmType": "cli"}),
            ("/api/auth/start", {"provider": "codex"}),
        ):
            answer = await client.post(path, json={**body, "userId": ann.user_id})
            assert answer.status_code == 404, answer.text
        sign_in = {"email": ann.email, "password": PASSWORD}
        answer = await client.post("/api/account/sign-in", json=sign_in)
        assert answer.status_code == 401
