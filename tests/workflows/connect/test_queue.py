"""The session queue on full hosts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from api_users import create_user
from controller_process import ENDS, At, ControllerProcess
from hosts_world import LIMIT_S, HostsWorld, hosts_world

ROOM_FOR_ONE = {"POLYDEV_HOST_MEMORY_MIB": "3200"}
NEVER = {"login_end": "never"}


class ApiUser:
    """A user of the API."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    def use_controller(self, controller: ControllerProcess) -> None:
        """Send further requests to another controller."""
        self._client.base_url = f"http://127.0.0.1:{controller.port}"

    async def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        return await self._client.request(method, path, json=body)

    async def connect(self, provider: str = "codex") -> str:
        answer = await self.call("POST", "/api/auth/start", {"provider": provider})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["sessionId"])

    async def wait_for_session(self, session_id: str, *statuses: str) -> dict[str, Any]:
        path = f"/api/auth/session/{session_id}"
        async with asyncio.timeout(LIMIT_S):
            view = (await self.call("GET", path)).json()
            while view["status"] not in {*statuses, *ENDS}:
                waiting = f"{path}?after={view['version']}&wait=20"
                view = (await self.call("GET", waiting)).json()
        return dict(view)

    async def cancel(self, session_id: str) -> None:
        await self.call("POST", f"/api/auth/session/{session_id}/cancel")


async def users(world: HostsWorld, count: int) -> Sequence[ApiUser]:
    """Create users of a world whose controller runs."""
    made = [await create_user(world.controller, f"person-{number}") for number in range(count)]
    scopes = ("read", "connect", "machines")
    return [ApiUser(await it.by_token(*scopes)) for it in made]


async def test_session_is_queued_until_there_is_capacity() -> None:
    async with hosts_world([ROOM_FOR_ONE], NEVER) as world:
        await world.controller.start()
        ann, bob = await users(world, 2)
        first = await ann.connect()
        await ann.wait_for_session(first, "waiting_for_person")
        second = await bob.connect()
        queued = await bob.wait_for_session(second, "queued")
        assert (queued["status"], queued["cliVM"]) == ("queued", None)
        await asyncio.sleep(1)
        assert (await bob.wait_for_session(second, "queued"))["ahead"] == 0
        assert len((await world.machines())["a"]) == 2
        await ann.cancel(first)
        admitted = await bob.wait_for_session(second, "waiting_for_person")
        assert (admitted["status"], admitted["ahead"]) == ("waiting_for_person", None)
        await bob.cancel(second)
        await bob.wait_for_session(second)
        await world.wait_until_clean()


async def test_queued_session_is_cancelled_and_leaves_nothing() -> None:
    async with hosts_world([ROOM_FOR_ONE], NEVER) as world:
        await world.controller.start()
        ann, bob = await users(world, 2)
        first = await ann.connect()
        await ann.wait_for_session(first, "waiting_for_person")
        second = await bob.connect()
        await bob.cancel(second)
        ended = await bob.wait_for_session(second)
        assert (ended["status"], ended["error"]["code"]) == ("cancelled", "login-cancelled")
        assert ended["steps"][0]["step"] == "wait-for-room"
        assert "create-machines" not in [step["step"] for step in ended["steps"]]
        await ann.cancel(first)
        await ann.wait_for_session(first)
        await world.wait_until_clean()


async def test_queued_session_expires() -> None:
    limit = {"POLYDEV_QUEUE_LIMIT_S": "10"}  # also for sessions admitted at once
    async with hosts_world([ROOM_FOR_ONE], NEVER, **limit) as world:
        await world.controller.start()
        ann, bob = await users(world, 2)
        first = await ann.wait_for_session(await ann.connect(), "waiting_for_person")
        assert first["status"] == "waiting_for_person"
        ended = await bob.wait_for_session(await bob.connect())
        assert (ended["status"], ended["error"]["code"]) == ("failed", "no-capacity")
        assert "within 10 s" in ended["error"]["message"]


async def test_session_larger_than_every_host_is_refused() -> None:
    async with hosts_world([{"POLYDEV_HOST_MEMORY_MIB": "1500"}]) as world:
        await world.controller.start()
        ended = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert (ended["status"], ended["error"]["code"]) == ("failed", "no-capacity")
        assert "the largest host has 1500 MiB" in ended["error"]["message"]
        assert (await world.machines())["a"] == {}


@pytest.mark.parametrize("point", ["before", "inside", "after"])
async def test_queue_survives_a_killed_controller(point: str) -> None:
    async with hosts_world([ROOM_FOR_ONE], NEVER) as world:
        await world.controller.start()
        ann, bob = await users(world, 2)
        first = await ann.connect()
        await ann.wait_for_session(first, "waiting_for_person")
        world.controller.order(At("wait-for-room", point))
        with world.controller.delayed_workflows():
            second = await bob.connect()
        if point == "before":
            await world.controller.ended()
            await world.controller.start()
        await ann.cancel(first)
        if point != "before":
            await world.controller.ended()
            await world.controller.start()
        assert (await bob.wait_for_session(second, "waiting_for_person"))[
            "status"
        ] == "waiting_for_person"
        await bob.cancel(second)
        await bob.wait_for_session(second)
        await world.wait_until_clean()


async def test_sessions_on_a_small_host_complete_within_its_capacity() -> None:
    room_for_three = {"POLYDEV_HOST_MEMORY_MIB": "9300"}
    async with hosts_world([room_for_three], {"login_s": 0.2}) as world:
        await world.controller.start()
        everybody = await users(world, 8)

        async def log_in(user: ApiUser) -> str:
            view = await user.wait_for_session(await user.connect())
            assert view["status"] == "completed", view["error"]
            answer = await user.call("POST", "/api/vm/destroy", {"vmId": view["cliVM"]["vmId"]})
            assert answer.status_code == 202
            return str(view["status"])

        async def watch() -> int:
            most = 0
            while True:
                [host] = await world.controller.call("GET", "/api/admin/hosts")
                most = max(most, host["memoryTakenMib"])
                assert most <= 9300
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        try:
            assert await asyncio.gather(*map(log_in, everybody)) == ["completed"] * 8
            assert not watching.done(), watching.result()
        finally:
            watching.cancel()
        await world.wait_until_clean()


async def test_machine_without_capacity_is_refused() -> None:
    async with hosts_world([ROOM_FOR_ONE], NEVER) as world:
        await world.controller.start()
        await world.controller.wait_for_session(
            await world.controller.connect("codex"), "waiting_for_person"
        )
        async with world.controller.client() as client:
            answer = await client.post("/api/vm/create", json={"vmType": "cli"})
        assert (answer.status_code, answer.json()["code"]) == (503, "no-capacity")
        assert "a has 128 MiB" in answer.json()["detail"]


async def test_queue_of_two_controllers_survives_one(postgresql_url: str) -> None:
    room_for_two = {"POLYDEV_HOST_MEMORY_MIB": "6200"}
    async with hosts_world([room_for_two], {"login_s": 0.5}, DATABASE_URL=postgresql_url) as world:
        other = world.add_controller("other")
        await world.controller.start()
        everybody = await users(world, 4)
        await other.start()
        await other.call("GET", "/health")
        sessions = [await it.connect() for it in everybody]
        await world.controller.kill()
        for it in everybody:
            it.use_controller(other)

        async def finish(user: ApiUser, session_id: str) -> str:
            view = await user.wait_for_session(session_id)
            assert view["status"] == "completed", view["error"]
            vm_id = str(view["cliVM"]["vmId"])
            await user.call("POST", "/api/vm/destroy", {"vmId": vm_id})
            return vm_id

        made = await asyncio.gather(*map(finish, everybody, sessions))
        assert len(set(made)) == 4
        async with asyncio.timeout(LIMIT_S):
            while (await world.machines())["a"]:
                await asyncio.sleep(0.3)


async def test_active_sessions_are_limited_and_those_waiting_for_a_user_do_not_count() -> None:
    one = {"POLYDEV_SESSIONS_AT_ONCE": "1"}
    async with hosts_world([{}], {**NEVER, "boot_s": 0.3}, **one) as world:
        await world.controller.start()
        everybody = await users(world, 3)
        session_ids = [await one.connect() for one in everybody]
        views = [
            await user.wait_for_session(session_id, "waiting_for_person")
            for user, session_id in zip(everybody, session_ids, strict=True)
        ]
        assert {view["status"] for view in views} == {"waiting_for_person"}
        spans = sorted(
            (steps["create-machines"]["startedAt"], steps["start-login"]["startedAt"])
            for steps in ({step["step"]: step for step in view["steps"]} for view in views)
        )
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans)), spans
