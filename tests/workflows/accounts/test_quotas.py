"""Quotas of users, also under concurrent requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from api_users import create_user
from controller_world import World, open_world

LIMITS = {
    "POLYDEV_CLI_MEMORY_MIB": "512",
    "POLYDEV_QUOTA_MACHINES": "2",
    "POLYDEV_QUOTA_SESSIONS": "1",
    "POLYDEV_QUOTA_MEMORY_MIB": "3072",  # two CLI machines and a browser machine
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world({"login_end": "never"}, **LIMITS) as it:
        await it.controller.start()
        yield it


@pytest.fixture
async def ann(world: World) -> AsyncIterator[httpx.AsyncClient]:
    user = await create_user(world.controller, "ann")
    async with await user.by_token("read", "connect", "machines") as client:
        yield client


def _refused(answers: list[httpx.Response]) -> list[str]:
    """Messages of the refused requests; assert that the others were accepted."""
    assert {it.status_code for it in answers} <= {202, 403}, [it.text for it in answers]
    refused = [it.json() for it in answers if it.status_code == 403]
    assert {it["code"] for it in refused} <= {"quota-exceeded"}
    assert all(it["hint"] for it in refused)
    return [it["detail"] for it in refused]


async def test_concurrent_machines_stay_within_the_quota(
    world: World, ann: httpx.AsyncClient
) -> None:
    asked = (ann.post("/api/vm/create", json={"vmType": "cli"}) for _ in range(6))
    messages = _refused(await asyncio.gather(*asked))
    assert len(messages) == 4
    assert all("POLYDEV_QUOTA_MACHINES" in it and "you use 2" in it for it in messages)
    assert len((await ann.get("/api/vm/list")).json()) == 2
    usage = (await ann.get("/api/account/usage")).json()
    assert usage["limits"] == {"machines": 2, "memoryMib": 3072, "sessions": 1}
    assert (usage["used"]["machines"], usage["used"]["sessions"]) == (2, 0)


async def test_concurrent_sessions_stay_within_the_quota(ann: httpx.AsyncClient) -> None:
    asked = (
        ann.post("/api/auth/start", json={"provider": provider})
        for provider in ("codex", "claude_code")
    )
    answers = await asyncio.gather(*asked)
    assert Counter(it.status_code for it in answers) == {202: 1, 403: 1}
    [message] = _refused(answers)
    assert "1 connect sessions at once (POLYDEV_QUOTA_SESSIONS)" in message


async def test_session_counts_its_future_machines(
    ann: httpx.AsyncClient,
) -> None:
    for _ in range(2):
        answer = await ann.post("/api/vm/create", json={"vmType": "cli"})
        assert answer.status_code == 202, answer.text
    assert (await ann.post("/api/auth/start", json={"provider": "codex"})).status_code == 202
    answer = await ann.post("/api/vm/create", json={"vmType": "browser"})
    [message] = _refused([answer])
    assert "POLYDEV_QUOTA_MACHINES" in message


async def test_stop_releases_memory_and_start_takes_it(
    world: World, ann: httpx.AsyncClient
) -> None:
    async def until(vm_id: str, status: str) -> None:
        async with asyncio.timeout(60):
            while (await ann.get(f"/api/vm/{vm_id}")).json()["status"] != status:
                await asyncio.sleep(0.1)

    browser, other = [
        (await ann.post("/api/vm/create", json={"vmType": kind})).json()["vm_id"]
        for kind in ("browser", "cli")
    ]
    await until(browser, "running")
    [message] = _refused([await ann.post("/api/auth/start", json={"provider": "codex"})])
    assert "MiB of memory at once (POLYDEV_QUOTA_MEMORY_MIB)" in message
    assert (await ann.post(f"/api/vm/{browser}/stop")).status_code == 202
    await until(browser, "stopped")
    await until(other, "running")
    assert (await ann.post("/api/auth/start", json={"provider": "codex"})).status_code == 202
    [message] = _refused([await ann.post(f"/api/vm/{browser}/start")])
    assert "MiB of memory" in message


async def test_administrators_have_no_quotas(world: World) -> None:
    for _ in range(3):
        await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
    assert len(await world.rows()) == 3
