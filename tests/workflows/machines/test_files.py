"""Files and resource usage of machines through the API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_users import create_user
from controller_world import World, open_world

LIMIT = 2 * 1024 * 1024


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world(POLYDEV_FILE_LIMIT_MIB="2") as it:
        await it.controller.start()
        yield it


async def create_machine(world: World) -> str:
    view = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    return str((await world.wait_for_machine(view["vm_id"], "running"))["vm_id"])


def folder_of(world: World) -> Path:
    """`/root` of the only machine, as a path on the host."""
    [root] = world.agent.state_dir.rglob("simulated-root")
    return Path(root) / "root"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_files_are_uploaded_listed_downloaded_moved_and_removed(world: World) -> None:
    vm_id = await create_machine(world)
    files = f"/api/vm/{vm_id}/files"
    content = os.urandom(LIMIT)
    async with world.controller.client() as client:

        async def ask(method: str, path: str, **how: Any) -> httpx.Response:
            return await client.request(method, f"{files}{path}", **how)

        put = await ask("PUT", "/content?path=/root/gr%C3%B6%C3%9Fe%20%22.bin", content=content)
        assert (put.status_code, put.json()["size"]) == (201, LIMIT)
        assert put.json()["name"] == 'größe ".bin'
        [entry] = (await ask("GET", "?path=/root")).json()["entries"]
        assert (entry["kind"], entry["size"], entry["name"]) == ("file", LIMIT, 'größe ".bin')

        got = await ask("GET", f"/content?path={entry['path']}")
        assert got.content == content
        assert got.headers["content-disposition"] == (
            "attachment; filename=\"gr__e _.bin\"; filename*=UTF-8''gr%C3%B6%C3%9Fe%20%22.bin"
        )
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in got.headers["content-security-policy"]
        assert got.headers["content-length"] == str(LIMIT)

        again = await ask("PUT", f"/content?path={entry['path']}", content=content)
        assert code_of(again) == (409, "already-exists")
        replaced = await ask("PUT", f"/content?path={entry['path']}&replace=true", content=b"x")
        assert replaced.status_code == 201
        assert (await ask("POST", "/folder?path=/root/made")).status_code == 204
        moved = await ask("POST", f"/move?path={entry['path']}&to=/root/made/plain")
        assert moved.status_code == 204
        assert code_of(await ask("DELETE", "?path=/root/made")) == (409, "file-refused")
        gone = await ask("DELETE", "?path=/root/made&withContent=true")
        assert gone.status_code == 204
        assert (await ask("GET", "?path=/root")).json()["entries"] == []


async def test_oversized_and_invalid_requests_are_refused(world: World) -> None:
    vm_id = await create_machine(world)
    files = f"/api/vm/{vm_id}/files"

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(64 * 1024)

    async with world.controller.client() as client:
        for content in (bytes(LIMIT + 1), endless()):
            answer = await client.put(f"{files}/content?path=/root/big", content=content)
            assert code_of(answer) == (413, "too-large")
        (folder_of(world) / "huge").touch()
        os.truncate(folder_of(world) / "huge", 1 << 40)
        huge = await client.get(f"{files}/content?path=/root/huge")
        assert code_of(huge) == (409, "file-refused")
        assert (await client.post(f"{files}/folder", content=bytes(200_000))).status_code == 413
        for path, code in {
            "relative": "bad-request",
            "/root/../etc": "bad-path",
            "/root/": "bad-path",
            "/root/%00": "bad-request",
        }.items():
            assert code_of(await client.get(f"{files}?path={path}")) == (422, code), path
        for path in ("/root/two%0Alines", "/root/%FF", "/root/%E2%80%AE", "/root/%20"):
            answer = await client.put(f"{files}/content?path={path}", content=b"x")
            assert code_of(answer) == (422, "bad-path"), path
        assert code_of(await client.get(f"{files}?path=/no")) == (404, "no-such-file")
        assert code_of(await client.delete(f"{files}?path=/root")) == (422, "bad-path")
        assert [it.name for it in folder_of(world).iterdir()] == ["huge"]


async def test_arbitrary_file_names_round_trip(world: World) -> None:
    vm_id = await create_machine(world)
    files = f"/api/vm/{vm_id}/files"
    names = [b"two\nlines\x1b[31m", b"\xff\xfe", "\u202egpj.exe".encode(), b"%41&path=etc#?"]
    for name in names:
        (folder_of(world) / os.fsdecode(name)).write_bytes(name)
    async with world.controller.client() as client:
        entries = (await client.get(f"{files}?path=/root")).json()["entries"]
        assert len(entries) == len(names)
        for entry in entries:
            assert entry["name"].isprintable()
            got = await client.get(f"{files}/content?path={entry['path']}")
            assert got.content in names
            assert "\n" not in got.headers["content-disposition"]
            assert (await client.delete(f"{files}?path={entry['path']}")).status_code == 204
    assert list(folder_of(world).iterdir()) == []


async def test_files_need_the_owner_the_scope_and_a_running_machine(
    world: World,
) -> None:
    owner = await create_user(world.controller, "owner")
    other = await create_user(world.controller, "other")
    async with owner.by_cookie() as client:
        vm_id = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()["vm_id"]
        while (await world.states()).get(vm_id) != "running":
            await asyncio.sleep(0.05)
        path = f"/api/vm/{vm_id}/files/content?path=/root/mine"
        assert (await client.put(path, content=b"x")).status_code == 201
        del client.headers["X-CSRF-Token"]
        assert (await client.put(path, content=b"y")).status_code == 403
        assert (await client.get(path)).content == b"x"
    async with other.by_cookie() as client:
        assert code_of(await client.get(path)) == (404, "no-such-machine")
        assert code_of(await client.put(path, content=b"y")) == (404, "no-such-machine")
        usage = await client.get(f"/api/vm/{vm_id}/usage")
        assert code_of(usage) == (404, "no-such-machine")
    async with await owner.by_token("read") as client:
        assert (await client.get(path)).status_code == 403
    async with owner.by_cookie() as client:
        await client.post(f"/api/vm/{vm_id}/stop")
        while (await world.states()).get(vm_id) != "stopped":
            await asyncio.sleep(0.05)
        assert code_of(await client.get(path)) == (409, "machine-busy")


async def test_resource_usage_is_reported_within_the_limits(world: World) -> None:
    vm_id = await create_machine(world)
    async with asyncio.timeout(60), world.controller.client() as client:
        usage = (await client.get(f"/api/vm/{vm_id}/usage")).json()
        while len(usage["samples"]) < 2:
            await asyncio.sleep(1)
            usage = (await client.get(f"/api/vm/{vm_id}/usage")).json()
        assert usage["limits"] == {"cpu": 1, "memoryBytes": 1024**3}
        assert all(it["cpu"] >= 0 and it["memoryBytes"] > 0 for it in usage["samples"])
        assert [it["at"] for it in usage["samples"]] == sorted(it["at"] for it in usage["samples"])
        last = (await client.get(f"/api/vm/{vm_id}/usage?last=1")).json()["samples"]
        assert len(last) == 1
        assert (await client.get(f"/api/vm/{vm_id}/errors")).status_code == 200
