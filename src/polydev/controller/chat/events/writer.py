"""Write the events of a running turn: to subscribers at once, to the database in batches.

Two events are stored before subscribers see them: a permission request, so that it can be answered,
and the end of the turn, so that the next one can start. Every transaction first checks that this
controller still owns the turn, and raises NoSuchChat if the chat was deleted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events, chats
from polydev.controller.store.queries.chats.chat_events import Permission
from polydev.shared.domain import (
    LAST_IN_TURN,
    TURN_IDS,
    Chat,
    ChatEvent,
    ChatStatus,
    EventKind,
    TitledBy,
    TurnEnd,
    VmId,
    now,
)
from polydev.shared.errors import GuestMisbehaved, NoSuchChat, PolydevError

log = logging.getLogger("polydev.controller.chat")

_BATCH_S = 0.1
_RETRY_S = 0.5
_FINISH_ATTEMPTS = 60
_MAX_EVENTS = 200_000
_TITLED_BY_OTHERS = [it for it in TitledBy if it is not TitledBy.USER]


class EventWriter:
    """Writes the events of one turn."""

    def __init__(
        self, database: Database, live_turns: LiveTurns, chat: Chat, max_bytes: int
    ) -> None:
        """`chat` is the row as this controller claimed it."""
        self.chat_id = chat.chat_id
        self._database = database
        self._live_turns = live_turns
        self._chat = chat
        self._live = live_turns.open(chat.chat_id, chat.turn)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._title: str | None = None
        self._is_titled_by_user = chat.titled_by is TitledBy.USER
        self._flush_lock = asyncio.Lock()

    def emit(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Add an event. Raises GuestMisbehaved if the turn grows too large."""
        self._count += 1
        self._bytes += len(data["text"]) if "text" in data else len(json.dumps(data))
        if self._bytes > self._max_bytes or self._count > _MAX_EVENTS:
            raise GuestMisbehaved(
                "The CLI sent more output than one turn can store", hint="Ask for less at once"
            )
        self._live.append(kind, data)

    def set_title(self, title: str) -> None:
        """Set the title that the CLI proposes, unless the user has set one."""
        if not self._is_titled_by_user and title != self._title:
            self._title = title
            self.emit(EventKind.TITLE, {"title": title})

    async def flush_forever(self) -> None:
        """Store pending events in batches until cancelled. Raises NoSuchChat."""
        while True:
            await self._live.has_pending.wait()
            await asyncio.sleep(_BATCH_S)
            try:
                await asyncio.shield(self.flush())
            except NoSuchChat:
                raise
            except PolydevError as error:
                log.warning("chat %s is not stored yet: %s", self.chat_id, error)
                await asyncio.sleep(_RETRY_S)
                self._live.has_pending.set()

    async def flush(self) -> None:
        """Store pending events. Raises NoSuchChat."""
        async with self._flush_lock:
            events = self._live.take_pending()
            async with self._database.write() as connection:
                await chats.require_turn(connection, self._chat)
                await self._insert(connection, events)
            self._live.mark_stored(len(events))

    async def save_session(self, vm_id: VmId, session_id: str) -> None:
        """Store which agent session has the conversation. Raises NoSuchChat."""
        async with self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            columns = {"vm_id": vm_id, "acp_session_id": session_id}
            await chats.update(connection, self.chat_id, **columns)

    async def save_permission_request(self, request_id: str, options: tuple[str, ...]) -> None:
        """Store a permission request; the chat waits for the user. Raises NoSuchChat."""
        chat = self._chat
        request = Permission(self.chat_id, request_id, chat.user_id, chat.turn, options, None, None)
        async with self._database.write() as connection:
            await chats.require_turn(connection, chat)
            await chat_events.insert_permission(connection, request, now())
            await chats.update(connection, self.chat_id, status=ChatStatus.WAITING)

    async def mark_running(self) -> None:
        """Record that the chat no longer waits for the user. Raises NoSuchChat."""
        async with self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            await chats.update(connection, self.chat_id, status=ChatStatus.RUNNING)

    async def finish(self, reason: TurnEnd, error: PolydevError | None) -> None:
        """Store the end of the turn, retrying for a while, and close the buffer."""
        try:
            for _ in range(_FINISH_ATTEMPTS):
                try:
                    await self._store_end(reason, error)
                except NoSuchChat:
                    return
                except PolydevError as failure:
                    log.warning("the end of %s is not stored yet: %s", self.chat_id, failure)
                    await asyncio.sleep(_RETRY_S)
                else:
                    return
        finally:
            self._live_turns.close(self.chat_id, self._live)

    async def _store_end(self, reason: TurnEnd, error: PolydevError | None) -> None:
        end = turn_ended_event(self._chat, reason, error)
        async with self._flush_lock, self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            await self._insert(connection, [*self._live.take_pending(), end])
            await chat_events.close_permissions(connection, self.chat_id, now())
            await chats.end_turn(connection, self._chat, reason, self._bytes, now())

    async def _insert(self, connection: Any, events: list[ChatEvent]) -> None:
        if events:
            chat = self._chat
            await chat_events.insert(connection, chat.chat_id, chat.user_id, events)
        if self._title is not None:
            title, by = self._title, TitledBy.AGENT
            await chats.set_title(connection, self.chat_id, title, by, _TITLED_BY_OTHERS)


def turn_ended_event(chat: Chat, reason: TurnEnd, error: PolydevError | None) -> ChatEvent:
    """Make the last event of a chat's turn."""
    problem = None
    if error is not None:
        problem = {"code": error.code, "message": error.message, "hint": error.hint}
    data = {"reason": reason.value, "error": problem}
    return ChatEvent(chat.turn * TURN_IDS + LAST_IN_TURN, EventKind.TURN_ENDED, data, now())
