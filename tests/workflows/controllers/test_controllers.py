"""Several controllers of one PostgreSQL database: all serve, and survivors take over.

Leases have their real length: a dead controller is noticed after ten seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from controller_process import TOKEN, At, ControllerProcess
from controller_world import World, open_world, tokens_in
from postgres import Cluster

from polydev.controller.store.tables import controllers, credentials, vms
from polydev.controller.workflows.engine.leases import EXIT_CODE, VALID_S
from polydev.shared.domain import now

PASTED = {"callbackUrl": "http://localhost:1455/auth/callback?code=x&state=x"}
LIMIT_S = 60


@asynccontextmanager
async def _open_controllers(
    url: str, count: int = 2, **simulation: Any
) -> AsyncIterator[tuple[World, list[ControllerProcess]]]:
    async with open_world(simulation, DATABASE_URL=url) as world:
        for _ in range(count - 1):
            world.add_controller()
        await world.controller.start()
        yield world, world.controllers


async def _start(*controllers: ControllerProcess) -> None:
    """Start controllers later, since each takes workflows from the same queue."""
    for controller in controllers:
        await controller.start()
        await controller.call("GET", "/health")


async def _start_sessions(world: World, at: ControllerProcess, count: int) -> dict[str, str]:
    """Start a session for each of `count` users; return tokens by session id."""
    tokens = list((await world.create_users(count)).values())
    sessions = await asyncio.gather(*(at.with_token(token).connect("codex") for token in tokens))
    return dict(zip(sessions, tokens, strict=True))


async def _wait_until_completed(at: ControllerProcess, sessions: dict[str, str]) -> list[str]:
    """Wait until all sessions complete; return their CLI machines."""
    views = await asyncio.gather(
        *(at.with_token(token).wait_for_session(it) for it, token in sessions.items())
    )
    for view in views:
        assert view["status"] == "completed", view["error"]
    return [view["cliVM"]["vmId"] for view in views]


async def _log_in(at: ControllerProcess, sessions: dict[str, str]) -> None:
    """Complete each login with a pasted callback URL."""
    for session_id, token in sessions.items():
        view = await at.with_token(token).wait_for_session(session_id, "waiting_for_person")
        assert view["status"] == "waiting_for_person"
        await at.with_token(token).call("POST", f"/api/auth/session/{session_id}/input", PASTED)


async def _wait_for_first_login(at: ControllerProcess, sessions: dict[str, str]) -> None:
    """Wait until the first session waits for its user."""
    session_id, token = next(iter(sessions.items()))
    view = await at.with_token(token).wait_for_session(session_id, "waiting_for_person")
    assert view["status"] == "waiting_for_person"


async def _counts(world: World) -> tuple[int, int]:
    """Count all machines ever created, and all credentials."""
    async with world.database() as database, database.read() as connection:
        machines = (await connection.execute(vms.select())).all()
        stored = (await connection.execute(credentials.select())).all()
    return len(machines), len(stored)


async def _wait_for_log(controller: ControllerProcess, message: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while message not in controller.log.read_text():
            await asyncio.sleep(0.1)


async def test_another_controller_takes_over_from_a_killed_one(
    postgresql_url: str,
) -> None:
    async with _open_controllers(postgresql_url, login_s=1) as (world, [first, second]):
        first.order(At("write", "inside"))
        with first.delayed_workflows():
            sessions = await _start_sessions(world, first, 12)
        await _start(second)
        assert await first.ended() == -9
        killed = time.monotonic()
        await _wait_for_log(second, "took over ")
        assert time.monotonic() - killed < VALID_S + LIMIT_S / 4
        machines = await _wait_until_completed(second, sessions)
        await world.assert_exact(*machines)
        assert await _counts(world) == (2 * len(sessions), len(sessions))


async def test_one_of_two_survivors_takes_over(postgresql_url: str) -> None:
    async with _open_controllers(postgresql_url, 3, login_end="never") as (world, [first, *others]):
        sessions = await _start_sessions(world, first, 6)
        await _wait_for_first_login(first, sessions)
        await _start(*others)
        await first.kill()
        await _log_in(others[0], sessions)
        machines = await _wait_until_completed(others[0], sessions)
        await world.assert_exact(*machines)
        assert await _counts(world) == (2 * len(sessions), len(sessions))
        lines = [it.log.read_text().count("took over ") for it in others]
        assert sorted(lines) == [0, 1]


async def test_controller_with_an_expired_lease_exits(postgresql_url: str) -> None:
    async with _open_controllers(postgresql_url, login_end="never") as (world, [first, second]):
        sessions = await _start_sessions(world, first, 4)
        await _wait_for_first_login(first, sessions)
        await _start(second)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            await _log_in(second, sessions)
            machines = await _wait_until_completed(second, sessions)
            before = first.log.read_text()
        finally:
            os.kill(first.pid, signal.SIGCONT)
        assert await first.ended() == EXIT_CODE
        lines = first.log.read_text().removeprefix(before).splitlines()
        assert len([line for line in lines if "lease of this controller expired" in line]) == 1
        assert not [line for line in lines if " started" in line], "it began a step"
        await world.assert_exact(*machines)
        assert await _counts(world) == (2 * len(sessions), len(sessions))


async def test_controller_exits_without_its_database_and_restarts(
    postgres: Cluster, postgresql_url: str
) -> None:
    async with open_world({"login_end": "never"}, DATABASE_URL=postgresql_url) as world:
        controller = world.controller
        await controller.start()
        session_id = await controller.connect("codex")
        await controller.wait_for_session(session_id, "waiting_for_person")
        postgres.stop()
        try:
            assert await controller.ended() == EXIT_CODE
        finally:
            postgres.start()
        await controller.start()
        await _wait_for_log(controller, "took over ")
        await controller.call("POST", f"/api/auth/session/{session_id}/input", PASTED)
        await world.assert_exact(*await _wait_until_completed(controller, {session_id: TOKEN}))


async def test_stopped_controller_releases_its_workflows_at_once(
    postgresql_url: str,
) -> None:
    async with _open_controllers(postgresql_url, login_end="never") as (world, [first, second]):
        await _wait_for_first_login(first, await _start_sessions(world, first, 1))
        await _start(second)
        assert await first.end() == 0
        async with world.database() as database, database.read() as connection:
            assert len((await connection.execute(controllers.select())).all()) == 1, "at once"
        await _wait_for_log(second, "took over ")


async def test_session_of_one_controller_completes_at_another(postgresql_url: str) -> None:
    async with _open_controllers(postgresql_url, login_end="never") as (world, [first, second]):
        await _start(second)
        async with second.client() as client, client.stream("GET", "/api/events") as events:
            streamed = asyncio.create_task(
                _wait_for_stream(events.aiter_lines(), "waiting_for_person")
            )
            session_id = await first.connect("codex")
            elsewhere = asyncio.create_task(
                second.wait_for_session(session_id, "waiting_for_person")
            )
            await first.wait_for_session(session_id, "waiting_for_person")
            began = time.monotonic()
            await asyncio.wait_for(asyncio.gather(elsewhere, streamed), LIMIT_S)
        assert time.monotonic() - began < 15, "the event came by polling, not by notification"
        await second.call("POST", f"/api/auth/session/{session_id}/input", PASTED)
        [cli] = await _wait_until_completed(second, {session_id: TOKEN})
        assert await first.session(session_id) == await second.session(session_id)
        await world.assert_exact(cli)


async def test_session_of_one_controller_is_cancelled_at_another(postgresql_url: str) -> None:
    async with _open_controllers(postgresql_url, login_end="never") as (world, [first, second]):
        session_id = await first.connect("codex")
        await first.wait_for_session(session_id, "waiting_for_person")
        await _start(second)
        began = now()
        await second.call("POST", f"/api/auth/session/{session_id}/cancel")
        session = await first.wait_for_session(session_id)
        assert session["status"] == "cancelled"
        [interrupted] = [it for it in session["steps"] if it["outcome"] == "failed"]
        assert datetime.fromisoformat(interrupted["endedAt"]) - began < timedelta(seconds=15)
        await world.assert_exact()


async def test_no_secret_is_in_the_database_or_its_journal(postgresql_url: str) -> None:
    async with _open_controllers(postgresql_url, login_end="never") as (world, [first, second]):
        session_id = await first.connect("codex")
        await first.wait_for_session(session_id, "waiting_for_person")
        await _start(second)
        code = "a-pasted-code-that-is-a-secret"
        pasted = {"callbackUrl": f"http://localhost:1455/auth/callback?code={code}&state=x"}
        await second.call("POST", f"/api/auth/session/{session_id}/input", pasted)
        [cli] = await _wait_until_completed(second, {session_id: TOKEN})
        world.assert_no_trace_of(code, *tokens_in(await world.credentials(cli, "codex")))


@pytest.mark.parametrize("step", ["create-machines", "write"])
async def test_machine_of_a_dead_controller_keeps_its_token(postgresql_url: str, step: str) -> None:
    """All controllers share the key that tokens are derived from."""
    async with _open_controllers(postgresql_url) as (world, [first, second]):
        first.order(At(step, "after"))
        with first.delayed_workflows():
            session_id = await first.connect("codex")
        assert await first.ended() == -9
        await _start(second)
        await world.assert_exact(*await _wait_until_completed(second, {session_id: TOKEN}))


async def _wait_for_stream(lines: Any, text: str) -> None:
    async for line in lines:
        if text in line:
            return
    raise AssertionError(f"the stream ended before {text}")
