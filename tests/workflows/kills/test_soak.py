"""Many sessions of many users under repeated kills of controller and host agent.

All randomness comes from one printed seed; POLYDEV_SOAK_SEED repeats it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from controller_world import World, open_world, tokens_in

from polydev.controller.store.tables import auth_sessions
from polydev.shared.providers import provider_ids

SESSIONS = {"sqlite": 40, "postgresql": 20}
"""POLYDEV_SOAK_SESSIONS overrides it; `make soak` uses 300 on each."""
LONG = 100
"""From this number of sessions on, kills are rarer and more sessions run at once."""
BETWEEN_KILLS = {"sqlite": (5, 15), "postgresql": (3, 10)}
"""The range of sessions that end between kills, which is a few seconds on any machine."""
BETWEEN_KILLS_IN_SHORT = (2, 5)
KILLS = ["controller"] * 6 + ["host agent"]
"""One round of kills, in random order. The host agent is killed less often, because its simulated
machines end with it and their logins fail."""
USERS = 60
AT_ONCE = 40
LIMIT_S = 1500
SETTLED_S = 90
PATIENCE_S = 60
PROVIDERS = provider_ids()
ENDS = {"completed", "failed", "expired", "cancelled"}


class User:
    """A user who connects providers, sometimes cancels, and retries every request."""

    def __init__(self, world: World, token: str, dice: random.Random) -> None:
        self._world = world
        self._token = token
        self._dice = dice

    async def connects(self) -> dict[str, Any]:
        """Run one session to its end."""
        asked = {"provider": self._dice.choice(PROVIDERS)}
        started = await self._ask_until_answered("POST", "/api/auth/start", asked)
        path = f"/api/auth/session/{started['sessionId']}"
        if self._dice.random() < 0.1:
            await asyncio.sleep(self._dice.random() * 3)
            await self._ask_until_answered("POST", f"{path}/cancel")
        view = await self._ask_until_answered("GET", path)
        while view["status"] not in ENDS:
            view = await self._ask_until_answered("GET", f"{path}?after={view['version']}&wait=20")
        return dict(view)

    async def _ask_until_answered(self, method: str, path: str, body: object = None) -> Any:
        """Retry until a controller answers; 409 means that the session has already ended."""
        async with self._world.controller.with_token(self._token).client() as client:
            while True:
                try:
                    answer = await client.request(method, path, json=body)
                except httpx.TransportError:
                    await asyncio.sleep(0.3)
                    continue
                if answer.is_success or answer.status_code == 409:
                    return answer.json()
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.3)


async def _kill(
    world: World,
    dice: random.Random,
    between: tuple[int, int],
    views: list[dict[str, Any]],
    enough: asyncio.Event,
) -> Counter[str]:
    """Kill and restart a process whenever a few more sessions have ended, until `enough`.

    The pace follows sessions, not time, so that the test means the same on every machine.
    """
    killed, ended, next_kills = Counter[str](), 0, list[str]()
    while not enough.is_set():
        ended += dice.randint(*between)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while len(views) < ended and not enough.is_set():
                    await asyncio.sleep(dice.random() / 2)
        next_kills = next_kills or dice.sample(KILLS, len(KILLS))
        victim = next_kills.pop()
        killed[victim] += 1
        if victim == "controller":
            await world.controller.kill()
            await world.expire_leases()
            await world.controller.start()
        else:
            await world.agent.kill()
            await world.agent.start()
    return killed


async def _run_sessions(
    world: World,
    tokens: list[str],
    dice: random.Random,
    numbers: range,
    views: list[dict[str, Any]],
    at_once: int,
) -> None:
    """Run sessions, `at_once` in parallel and one per user; append their final views."""
    left = iter(numbers)

    async def of(token: str, its_dice: random.Random) -> None:
        user = User(world, token, its_dice)
        for _ in left:
            async with room:
                views.append(await user.connects())

    room = asyncio.Semaphore(at_once)
    async with asyncio.TaskGroup() as group:
        for token in tokens:
            group.create_task(of(token, random.Random(dice.random())))


@pytest.mark.timeout(1800)
async def test_every_session_settles_despite_kills(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = database_url.partition(":")[0]
    count = int(os.environ.get("POLYDEV_SOAK_SESSIONS", SESSIONS[kind]))
    seed = int(os.environ.get("POLYDEV_SOAK_SEED", random.randrange(2**32)))
    is_long = count >= LONG
    between = BETWEEN_KILLS[kind] if is_long else BETWEEN_KILLS_IN_SHORT
    dice, enough, began = random.Random(seed), asyncio.Event(), time.monotonic()
    with capsys.disabled():
        print(f"\nsoak: seed {seed}", end="", flush=True)
    async with open_world(
        {"login_s": 0.2, "boot_s": 0.1, "channel": "direct"},
        DATABASE_URL=database_url,
        POLYDEV_CONNECTS_PER_HOUR="100000",
        POLYDEV_RECONCILE_PERIOD_S="5",
    ) as world:
        await world.controller.start()
        await world.controller.call("GET", "/health")
        tokens = list((await world.create_users(USERS)).values())
        views: list[dict[str, Any]] = []
        killing = asyncio.create_task(_kill(world, dice, between, views, enough))
        async with asyncio.timeout(LIMIT_S):
            at_once = AT_ONCE if is_long else count // 5
            await _run_sessions(world, tokens, dice, range(count), views, at_once)
        enough.set()
        killed, ends = await killing, Counter(view["status"] for view in views)
        with capsys.disabled():
            counts = ", ".join(f"{count} {what}" for what, count in sorted((ends + killed).items()))
            print(f": {counts}, {time.monotonic() - began:.0f} s, {dict(_reasons(views))} ", end="")
        await _assert_settled(world)
        assert sum(ends.values()) == count
        assert ends["completed"] > count / 5
        for view in views:
            assert view["status"] == "completed" or view["error"]["message"], view
        assert "failed" not in _reasons(views), "an unexpected error: see the log"


def _reasons(views: list[dict[str, Any]]) -> Counter[str]:
    return Counter(view["error"]["code"] for view in views if view["error"])


async def _assert_settled(world: World) -> None:
    """Wait for the reconciler; then exactly the completed sessions' CLI machines exist."""
    completed = sa.select(auth_sessions.c.cli_vm_id, auth_sessions.c.provider).where(
        auth_sessions.c.status == "completed"
    )
    async with world.database() as database, database.read() as connection:
        rows = (await connection.execute(completed)).all()
    machines = {row.cli_vm_id for row in rows}
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLED_S):
            while not await _is_exact(world, *machines):
                await asyncio.sleep(1)
    await world.assert_exact(*machines)
    for row in rows[:3]:
        world.assert_no_trace_of(*tokens_in(await world.credentials(row.cli_vm_id, row.provider)))


async def _is_exact(world: World, *machines: str) -> bool:
    try:
        await world.assert_exact(*machines)
    except AssertionError:
        return False
    return True
