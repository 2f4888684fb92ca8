"""Administrators' operations on hosts, and on machines and sessions of all users."""

from __future__ import annotations

from typing import Any

import httpx
from api_users import TestUser, create_user
from controller_world import World, open_world

WHY = {"reason": "It mines coins"}


async def _pages(client: httpx.AsyncClient, path: str) -> list[list[dict[str, Any]]]:
    pages, following = [], path
    while following:
        answer = await client.get(following)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        following = answer.links.get("next", {}).get("url", "")
    return pages


async def _machine(world: World, user: TestUser) -> str:
    async with user.by_cookie() as client:
        machine = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
        while machine["status"] == "creating":
            path = f"/api/vm/{machine['vm_id']}?after={machine['version']}&wait=20"
            machine = (await client.get(path)).json()
        assert machine["status"] == "running", machine
        return str(machine["vm_id"])


async def _audit_entries(client: httpx.AsyncClient, action: str) -> list[tuple[str, str]]:
    entries = (await client.get("/api/admin/audit", params={"action": action})).json()
    return [(it["subject"], it["reason"]) for it in entries]


async def test_administrators_list_and_destroy_machines_of_all_users(
    world: World,
) -> None:
    await world.controller.start()
    ann, ben = [await create_user(world.controller, it) for it in ("ann", "ben")]
    made = {await _machine(world, it): it.user_id for it in (ann, ben, ann)}
    async with world.controller.client() as client:
        pages = await _pages(client, "/api/admin/machines?limit=2")
        assert [len(it) for it in pages] == [2, 1]
        listed = [row for page in pages for row in page]
        assert {row["vm_id"]: row["user_id"] for row in listed} == made
        assert [row["created_at"] for row in listed] == sorted(row["created_at"] for row in listed)
        assert {row["host_id"] for row in listed} == {"local"}
        [of_ben] = (await client.get(f"/api/admin/machines?userId={ben.user_id}")).json()
        path = f"/api/admin/machines/{of_ben['vm_id']}/destroy"
        assert (await client.post(path, json={})).status_code == 422
        answer = await client.post(path, json=WHY)
        assert (answer.status_code, answer.json()["status"]) == (202, "destroying")
        assert await _audit_entries(client, "machine.destroy") == [(of_ben["vm_id"], WHY["reason"])]
    async with ben.by_cookie() as client:
        machine = answer.json()
        while machine["status"] != "destroyed":
            path = f"/api/vm/{machine['vm_id']}?after={machine['version']}&wait=20"
            machine = (await client.get(path)).json()
        assert (await client.get("/api/vm/list")).json() == []
    assert set(await world.machines()) == set(made) - {of_ben["vm_id"]}


async def test_administrators_list_and_cancel_sessions_of_all_users() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        ann = await create_user(world.controller, "ann")
        async with ann.by_cookie() as client:
            asked = {"provider": "codex"}
            session_id = (await client.post("/api/auth/start", json=asked)).json()["sessionId"]
        own = await world.controller.connect("codex")
        async with world.controller.client() as client:
            pages = await _pages(client, "/api/admin/sessions?limit=1")
            assert [[it["sessionId"] for it in page] for page in pages] == [[own], [session_id]]
            assert "oauthUrl" not in pages[0][0]
            path = f"/api/admin/sessions/{session_id}/cancel"
            assert (await client.post(path, json=WHY)).status_code == 202
            assert await _audit_entries(client, "session.cancel") == [(session_id, WHY["reason"])]
        async with ann.by_cookie() as client:
            path = f"/api/auth/session/{session_id}"
            session = (await client.get(path)).json()
            while session["endedAt"] is None:
                session = (await client.get(f"{path}?after={session['version']}&wait=20")).json()
            assert session["status"] == "cancelled"
            assert [it["sessionId"] for it in (await client.get("/api/auth/sessions")).json()] == [
                session_id
            ]
            assert (await client.get("/api/auth/sessions?live=true")).json() == []
        async with world.controller.client() as client:
            live = (await client.get("/api/admin/sessions?live=true")).json()
            assert [it["sessionId"] for it in live] == [own]
            again = await client.post(f"/api/admin/sessions/{session_id}/cancel", json=WHY)
            assert (again.status_code, again.json()["code"]) == (409, "session-ended")


async def test_only_the_local_administrator_resets_passwords(
    world: World,
) -> None:
    await world.controller.start()
    ann = await create_user(world.controller, "ann")
    path = f"/api/admin/people/{ann.user_id}/password"
    async with world.controller.client() as client, ann.by_cookie() as anns:
        made = (await client.post(path)).json()
        assert (await anns.get("/api/account")).status_code == 401, "her sign-ins have ended"
        assert await _audit_entries(client, "person.password") == [(ann.user_id, "")]
        unknown = await client.post("/api/admin/people/nobody/password")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "no-such-person")
        role = {"role": "administrator"}
        await client.post(f"/api/admin/people/{ann.user_id}/role", json=role)
    async with world.controller.client_as() as fresh:
        asked = {"email": made["email"], "password": made["password"]}
        signed_in = await fresh.post("/api/account/sign-in", json=asked)
        assert signed_in.status_code == 200, signed_in.text
        csrf = {"X-CSRF-Token": signed_in.json()["csrfToken"]}
        refused = await fresh.post("/api/admin/people/admin/password", headers=csrf)
        assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")


async def test_draining_host_keeps_its_machines_and_refuses_new_ones(world: World) -> None:
    await world.controller.start()
    ann = await create_user(world.controller, "ann")
    vm_id = await _machine(world, ann)
    async with world.controller.client() as client, ann.by_cookie() as anns:
        [host] = (await client.get("/api/admin/hosts")).json()
        assert (host["hostId"], host["state"], host["machines"]) == ("local", "active", 1)
        assert host["memoryTakenMib"] > 0
        drained = await client.post("/api/admin/hosts/local/drain", json=WHY)
        assert (drained.status_code, drained.json()["state"]) == (200, "draining")
        refused = await anns.post("/api/vm/create", json={"vmType": "cli"})
        assert (refused.status_code, refused.json()["code"]) == (503, "no-capacity")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await anns.get(f"/api/vm/{vm_id}")).json()["status"] == "running"
        in_use = await client.delete("/api/admin/hosts/local")
        assert (in_use.status_code, in_use.json()["code"]) == (409, "host-in-use")
        nowhere = await client.post("/api/admin/hosts/nowhere/drain", json=WHY)
        assert (nowhere.status_code, nowhere.json()["code"]) == (404, "no-such-host")
        assert (await client.post("/api/admin/hosts/local/activate", json=WHY)).status_code == 200
        assert (await anns.post("/api/vm/create", json={"vmType": "cli"})).status_code == 202
        assert await _audit_entries(client, "host.drain") == [("local", WHY["reason"])]
