"""Test that a chat's stream ends with its chat."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from polydev.controller.access import Caller
from polydev.controller.api.http.services import Services
from polydev.controller.api.routes.chats import chats as api
from polydev.controller.chat import Chats
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import open_database
from polydev.controller.store.queries.accounts import users
from polydev.shared.domain import Scope, User, UserId, now

ANN = User(UserId("ann"), "ann@example.test", now())


async def _check_access() -> bool:
    return True


async def test_stream_of_a_deleted_chat_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HEARTBEAT_S", 0.05)
    database = open_database(None, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, ANN)
    caller = Caller(ANN, frozenset({Scope.CHAT}), "sign-in", "127.0.0.1", "a-sign-in")
    chats = Chats(database, ControllerSettings())
    services = cast(Services, SimpleNamespace(chats=chats))
    chat = await chats.create(caller, "codex", "")
    check = api._listen_check(services, caller, chat.chat_id, _check_access)
    frames = api._event_frames(chats.subscribe(caller, chat.chat_id, 0, 0.05), check)
    assert [await anext(frames) for _ in range(4)][1:] == [": still here\n\n"] * 3
    await chats.delete(caller, chat.chat_id)
    async with asyncio.timeout(10):
        assert {piece async for piece in frames} <= {": still here\n\n"}
    await database.close()
