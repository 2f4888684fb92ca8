"""Subscribe to a chat: stored events, then live ones, without gap or repetition.

If the turn runs in this controller, events come from memory without delay. All others come from the
database, which signals every commit of any controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events
from polydev.shared.domain import ChatEvent, ChatId, UserId

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.4
"""Every commit wakes every subscriber, so those who find nothing poll less often for a while."""


async def subscribe(
    database: Database,
    live_turns: LiveTurns,
    chat_id: ChatId,
    user_id: UserId,
    after: int,
    idle_s: float,
) -> AsyncGenerator[list[ChatEvent]]:
    """Yield events after an id, forever; an empty list after `idle_s` without any."""
    pause_s = _FIRST_PAUSE_S
    while True:
        live_change, commit = live_turns.next_change(chat_id), database.next_change()
        live = live_turns.get(chat_id)
        if live is not None and after >= live.floor:
            found = live.after(after)
            if not found and not await _set_within(live_change, idle_s):
                yield []
        else:
            floor = None if live is None else live.floor
            async with database.read(user_id) as connection:
                found = await chat_events.list_after(connection, chat_id, after)
            if not found and floor is not None:
                after = floor
            elif not found:
                if not await _any_set_within(idle_s, commit, live_change):
                    yield []
                elif not live_change.is_set():
                    await _set_within(live_change, pause_s)
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        if found:
            pause_s = _FIRST_PAUSE_S
            after = found[-1].event_id
            yield chat_events.merge_text(found)


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            return await event.wait()
    except TimeoutError:
        return False


async def _any_set_within(limit_s: float, *events: asyncio.Event) -> bool:
    waits = [asyncio.ensure_future(it.wait()) for it in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for it in waits:
            it.cancel()
    return bool(done)
