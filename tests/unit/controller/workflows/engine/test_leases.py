"""Leases of controllers, and takeover of a dead controller's workflows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa

from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.system import controllers
from polydev.controller.store.tables import controllers as table
from polydev.controller.workflows.engine import leases
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.leases import FailoverMonitor, Lease

LIMIT_S = 30.0


@pytest.fixture
async def database(postgresql_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    it = open_database(postgresql_url, tmp_path)
    yield it
    await it.close()


class BusyEngine:
    """An engine with unfinished workflows; records takeovers."""

    def __init__(self, *busy: str) -> None:
        self.busy = frozenset(busy)
        self.taken: list[frozenset[str]] = []

    async def list_executors(self) -> frozenset[str]:
        return self.busy

    async def take_over(self, executors: frozenset[str]) -> int:
        self.taken.append(executors)
        return len(executors)


async def _begin_lease(database: Database, executor_id: str, valid_s: float) -> None:
    async with database.write() as connection:
        await controllers.begin_lease(connection, executor_id, valid_s, "1", frozenset())


async def _age_leases(database: Database, seconds: float) -> None:
    """Let so much time pass in the rows."""
    async with database.write() as connection:
        earlier = table.c.lease_until - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
        await connection.execute(sa.update(table).values(lease_until=earlier))


async def _list_alive(database: Database) -> frozenset[str]:
    async with database.read() as connection:
        return await controllers.list_alive(connection)


async def _count_rows(database: Database) -> int:
    async with database.read() as connection:
        return len((await connection.execute(sa.select(table))).all())


async def _run_failover(database: Database, engine: BusyEngine) -> None:
    await FailoverMonitor(database, cast(Engine, engine)).run_once()


async def test_lease_is_renewed_and_released(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PERIOD_S", 0.05)
    monkeypatch.setattr(leases, "VALID_S", 600.0)
    lease = Lease(database, on_lapse=pytest.fail)
    async with lease.hold():
        for _ in range(3):
            await _age_leases(database, leases.VALID_S * 2 / 3)
            async with asyncio.timeout(LIMIT_S):
                while await _remaining_s(database) < leases.VALID_S / 2:
                    await asyncio.sleep(0.02)
        assert await _list_alive(database) == {lease.executor_id}
        lease.check()
    assert await _count_rows(database) == 0


async def test_expired_lease_ends_the_process(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PERIOD_S", 0.05)
    lapsed = threading.Event()
    async with Lease(database, on_lapse=lapsed.set).hold():
        await _age_leases(database, leases.VALID_S + 1)
        assert await asyncio.to_thread(lapsed.wait, LIMIT_S)
        assert await _list_alive(database) == frozenset()


async def test_controller_that_cannot_renew_ends_before_the_takeover(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "VALID_S", 2.0)
    monkeypatch.setattr(leases, "PERIOD_S", 3600)
    lapsed = threading.Event()
    lease = Lease(database, on_lapse=lapsed.set)
    async with lease.hold():
        assert await asyncio.to_thread(lapsed.wait, LIMIT_S)
        assert lease._valid_until_s == pytest.approx(leases._clock_s(), abs=5)
        lapsed.clear()
        lease.check()
        assert lapsed.is_set()


async def test_only_dead_executors_are_taken_over(
    database: Database,
) -> None:
    await _begin_lease(database, "dead", 0)
    await _begin_lease(database, "dead and idle", 0)
    await _begin_lease(database, "alive", 60)
    engine = BusyEngine("dead", "unowned", "alive")
    await _run_failover(database, engine)
    assert engine.taken == [{"dead", "dead and idle", "unowned"}]
    assert await _count_rows(database) == 1
    assert await _list_alive(database) == {"alive"}


async def test_only_one_of_concurrent_monitors_takes_over(database: Database) -> None:
    await _begin_lease(database, "dead", 0)
    engines = [BusyEngine("dead") for _ in range(4)]
    others_have_looked = asyncio.Event()
    for engine in engines:
        engine.take_over = _take_over_after(others_have_looked, engine)  # type: ignore[method-assign]
    looking = {asyncio.create_task(_run_failover(database, engine)) for engine in engines}
    async with asyncio.timeout(LIMIT_S):
        while len(looking) > 1:  # the one that takes over ends last
            done, looking = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
            for look in done:
                look.result()
        others_have_looked.set()
        await asyncio.wait(looking)
    assert sorted(len(engine.taken) for engine in engines) == [0, 0, 0, 1]


async def test_interrupted_takeover_is_repeated_by_another_monitor(
    database: Database,
) -> None:
    await _begin_lease(database, "dead", 0)
    first, second = BusyEngine("dead"), BusyEngine("dead")
    claimed = asyncio.Event()
    first.take_over = _take_over_forever(claimed)  # type: ignore[method-assign]
    looking = asyncio.create_task(_run_failover(database, first))
    await asyncio.wait_for(claimed.wait(), LIMIT_S)
    looking.cancel()
    await asyncio.wait({looking})
    await _run_failover(database, second)
    assert second.taken == [], "the first controller's claim was still valid"
    assert await _list_alive(database) == frozenset(), "a claim does not count as a controller"
    await _age_leases(database, leases.VALID_S)
    await _run_failover(database, second)
    assert second.taken == [{"dead"}]
    assert await _count_rows(database) == 0


async def _remaining_s(database: Database) -> float:
    async with database.read() as connection:
        left = sa.extract("epoch", table.c.lease_until)
        left -= sa.extract("epoch", sa.func.clock_timestamp())
        return float((await connection.execute(sa.select(left))).scalar_one())


def _take_over_after(event: asyncio.Event, engine: BusyEngine):  # type: ignore[no-untyped-def]
    async def take_over(executors: frozenset[str]) -> int:
        engine.taken.append(executors)
        await event.wait()
        return 1

    return take_over


def _take_over_forever(began: asyncio.Event):  # type: ignore[no-untyped-def]
    async def take_over(executors: frozenset[str]) -> int:
        began.set()
        await asyncio.Event().wait()
        return 0

    return take_over
