"""Test that pages of chat events are bounded, on both databases."""

from __future__ import annotations

import pytest
from new_records import new_chat

from polydev.controller.store.engine.database import Database
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
BEFORE = 1_000_009


@pytest.fixture(autouse=True)
async def _create_chat(store: Database) -> None:
    chat = new_chat(CHAT, ANN)
    async with store.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        await chats.insert(connection, chat)


async def test_pages_of_large_events_are_bounded(store: Database) -> None:
    large = {"text": "x" * (chat_events.MAX_PAGE_CHARACTERS // 4)}
    inserted = [ChatEvent(1_000_010 + n, EventKind.PLAN, dict(large), now()) for n in range(12)]
    async with store.write() as connection:
        await chat_events.insert(connection, CHAT, ANN, inserted)
    known, pages = BEFORE, []
    async with store.read(ANN) as connection:
        while found := await chat_events.list_after(connection, CHAT, known):
            known = found[-1].event_id
            pages.append([it.event_id for it in found])
    assert [it for page in pages for it in page] == [it.event_id for it in inserted]
    assert max(map(len, pages)) <= 5


async def test_oversized_event_is_a_page_of_its_own(store: Database) -> None:
    large = {"text": "x" * (chat_events.MAX_PAGE_CHARACTERS + 1)}
    inserted = [ChatEvent(1_000_010 + n, EventKind.PLAN, dict(large), now()) for n in range(2)]
    async with store.write() as connection:
        await chat_events.insert(connection, CHAT, ANN, inserted)
    async with store.read(ANN) as connection:
        found = await chat_events.list_after(connection, CHAT, BEFORE)
    assert [it.event_id for it in found] == [1_000_010]
