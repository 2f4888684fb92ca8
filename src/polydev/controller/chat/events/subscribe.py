"""Following a chat: what was told, and what is told, without gap or repetition.

The API streams it. Where this controller does the turn, pieces come from memory at once; everything
else comes from the database, which tells of each commit, whichever controller made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from polydev.controller.chat.events.buffer import Lives
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events
from polydev.shared.domain import ChatEvent, ChatId, UserId

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.4
"""Anybody's commit wakes everybody: who looked in vain looks less often for a while."""


async def follow(
    database: Database, lives: Lives, chat_id: ChatId, user_id: UserId, known: int, idle_s: float
) -> AsyncGenerator[list[ChatEvent]]:
    """Events after the known one, a few at a time, for ever; an empty list after `idle_s` without
    any."""
    pause_s = _FIRST_PAUSE_S
    while True:
        news, change = lives.next_news(chat_id), database.next_change()
        live = lives.get(chat_id)
        if live is not None and known >= live.floor:
            found = live.after(known)
            if not found and not await _set_within(news, idle_s):
                yield []
        else:
            floor = None if live is None else live.floor
            async with database.read(user_id) as connection:
                found = await chat_events.list_after(connection, chat_id, known)
            if not found and floor is not None:
                known = floor
            elif not found:
                if not await _first_of(idle_s, change, news):
                    yield []
                elif not news.is_set():
                    await _set_within(news, pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if found:
            pause_s = _FIRST_PAUSE_S
            known = found[-1].event_id
            yield chat_events.merge_text(found)


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            return await event.wait()
    except TimeoutError:
        return False


async def _first_of(limit_s: float, *events: asyncio.Event) -> bool:
    """Return when one of them is set, or the time is over. Whether one was."""
    waits = [asyncio.ensure_future(it.wait()) for it in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for it in waits:
            it.cancel()
    return bool(done)
