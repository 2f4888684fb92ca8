"""Test event streams: heartbeats, their end, pruned events, slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.api.routes.system import events as api
from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.system import events
from polydev.shared.domain import User, UserId, now

ANN = UserId("ann")
LIMIT_S = 30


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(None, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
    yield database
    await database.close()


class PermissionCheck:
    """A permission check that counts its calls."""

    def __init__(self) -> None:
        self.allowed = True
        self.calls = 0

    async def __call__(self) -> bool:
        self.calls += 1
        return self.allowed


def _stream(
    store: Database, check: PermissionCheck, resume_after: int | None = None
) -> AsyncIterator[str]:
    services: Any = SimpleNamespace(database=store)
    return api._event_stream(services, ANN, resume_after, check)


async def _next(stream: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(stream), LIMIT_S)


async def _emit(store: Database, kind: str = "machine", count: int = 1) -> None:
    for number in range(count):
        async with store.write() as connection:
            await event_outbox.emit(connection, ANN, kind, f"{kind}-{number}", status="x")


async def test_quiet_stream_sends_heartbeats(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HEARTBEAT_S", 0.05)
    check = PermissionCheck()
    stream = _stream(store, check)
    assert await _next(stream) == "id: 0\n\n"
    assert [await _next(stream) for _ in range(3)] == [": still here\n\n"] * 3
    assert check.calls >= 3


@pytest.mark.parametrize("sign", ["heartbeat", "token", "account"])
async def test_stream_ends_when_access_ends(
    store: Database, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    check = PermissionCheck()
    stream = _stream(store, check)
    await _next(stream)
    check.allowed = False
    if sign == "heartbeat":
        monkeypatch.setattr(api, "HEARTBEAT_S", 0.05)
    waiting = asyncio.create_task(_next(stream))
    await asyncio.sleep(0)
    if sign != "heartbeat":
        await _emit(store, sign)
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_reader_catches_up_over_several_pages(store: Database) -> None:
    await _emit(store, count=events.PAGE + 20)
    stream = _stream(store, PermissionCheck(), resume_after=0)
    assert await _next(stream) == "id: 0\n\n"
    first, second = await _next(stream), await _next(stream)
    assert first.count("event: machine") == events.PAGE
    assert second.count("event: machine") == 20


async def test_reader_of_pruned_events_gets_a_reset(store: Database) -> None:
    await _emit(store, count=10)
    async with store.write() as connection:
        await events.prune(connection, now().replace(year=2000), keep=3)
    stream = _stream(store, PermissionCheck(), resume_after=2)
    assert await _next(stream) == "id: 10\nevent: reset\ndata: {}\n\n"
    await _emit(store)
    assert "id: 11\nevent: machine\n" in await _next(stream)
