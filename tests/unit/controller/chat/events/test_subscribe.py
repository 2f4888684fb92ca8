"""Subscribers get every event once, from memory or the database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from new_records import new_chat

from polydev.controller.chat.events.buffer import LiveTurn, LiveTurns
from polydev.controller.chat.events.subscribe import subscribe
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.chats import chat_events, chats
from polydev.shared.domain import (
    ChatEvent,
    ChatId,
    EventKind,
    User,
    UserId,
    now,
)

CHAT, ANN = ChatId("a-chat"), UserId("ann")


@pytest.fixture
async def database(tmp_path: Path) -> Database:
    database = open_database(None, tmp_path)
    await database.upgrade()
    chat = new_chat(CHAT, ANN)
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        await chats.insert(connection, chat)
        await chats.insert_turn(connection, chat, "hello", "hello", now())
    return database


async def store(database: Database, live: LiveTurn) -> None:
    events = live.take_pending()
    async with database.write() as connection:
        if events:
            await chat_events.insert(connection, CHAT, ANN, events)
    live.mark_stored(len(events))


async def test_text_of_one_loop_iteration_becomes_one_event() -> None:
    live = LiveTurn(1, lambda: None)
    for word in ("one ", "two "):
        live.append(EventKind.TEXT, {"text": word})
    await asyncio.sleep(0.01)
    live.append(EventKind.TEXT, {"text": "three"})
    assert [it.data["text"] for it in live.take_pending()] == ["one two ", "three"]


async def test_published_events_never_change() -> None:
    live = LiveTurn(1, lambda: None)
    live.append(EventKind.TEXT, {"text": "one"})
    await asyncio.sleep(0.01)
    [event] = live.after(live.floor)
    live.append(EventKind.TEXT, {"text": "two"})
    assert event.data == {"text": "one"}


@pytest.mark.parametrize("every", [1, 7, 1000])
async def test_subscribers_get_each_event_once_in_order(database: Database, every: int) -> None:
    """Events are in memory, in the database, or on the way there."""
    live_turns = LiveTurns()
    heard: dict[int, list[ChatEvent]] = {0: [], 1: [], 2: []}

    async def listen(number: int) -> None:
        async for events in subscribe(database, live_turns, CHAT, ANN, 0, 1.0):
            heard[number] += events
            if heard[number][-1].kind is EventKind.TURN_ENDED:
                return
            await asyncio.sleep(0.003 * number)  # some are slower than the turn

    listening = [asyncio.create_task(listen(number)) for number in heard]
    await asyncio.sleep(0.05)
    live = live_turns.open(CHAT, 1)
    for number in range(900):
        live.append(EventKind.TEXT, {"text": f"{number} "})
        await asyncio.sleep(0)
        if number % every == every - 1 and number % 5 == 0:
            await store(database, live)
    live.append(EventKind.TURN_ENDED, {"reason": "end_turn", "error": None})
    await store(database, live)
    live_turns.close(CHAT, live)
    async with asyncio.timeout(30):
        await asyncio.gather(*listening)
    for events in heard.values():
        ids = [it.event_id for it in events]
        assert ids == sorted(set(ids))
        texts = "".join(it.data["text"] for it in events if it.kind is EventKind.TEXT)
        assert texts == "".join(f"{number} " for number in range(900))
    await database.close()


async def test_idle_chat_yields_empty_lists(database: Database) -> None:
    followed = subscribe(database, LiveTurns(), CHAT, ANN, 10**9, 0.05)
    async with asyncio.timeout(5):
        assert await anext(followed) == []
    await followed.aclose()
    await database.close()
