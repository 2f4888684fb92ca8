"""What is kept of a turn that goes on: told to listeners at once, stored in batches a moment later.

`turns.py` has one for its turn. What needs an answer is stored before it is told, so that it can be
answered; the end is stored with all that came before it, and told after that, so that whoever hears
of it can ask the next thing. Every transaction asks first whether the turn is still this
controller's: it is not once the chat is deleted (NoSuchChat).
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from polydev.controller.chat.events.buffer import Lives
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
_AGAIN_S = 0.5
_END_TRIES = 60
_MAX_EVENTS = 200_000
_BUT_PERSON = [it for it in TitledBy if it is not TitledBy.USER]


class Recording:
    """The events of one turn."""

    def __init__(self, database: Database, lives: Lives, chat: Chat, max_bytes: int) -> None:
        """`chat`: as it was claimed, by whom."""
        self.chat_id = chat.chat_id
        self._database = database
        self._lives = lives
        self._chat = chat
        self._live = lives.open(chat.chat_id, chat.turn)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._title: str | None = None
        self._is_entitled = chat.titled_by is TitledBy.USER
        self._storing = asyncio.Lock()

    def tell(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Tell something. Raises GuestMisbehaved when it is too much."""
        self._count += 1
        self._bytes += len(data["text"]) if "text" in data else len(json.dumps(data))
        if self._bytes > self._max_bytes or self._count > _MAX_EVENTS:
            raise GuestMisbehaved(
                "The CLI said more in one turn than is kept of it", hint="Ask for less at once"
            )
        self._live.add(kind, data)

    def entitle(self, title: str) -> None:
        """The CLI gives the chat a title, unless the person has."""
        if not self._is_entitled and title != self._title:
            self._title = title
            self.tell(EventKind.TITLE, {"title": title})

    async def keep_up(self) -> None:
        """Store what is told, until cancelled. Raises NoSuchChat."""
        while True:
            await self._live.unstored.wait()
            await asyncio.sleep(_BATCH_S)
            try:
                await asyncio.shield(self.store())
            except NoSuchChat:
                raise
            except PolydevError as error:
                log.warning("chat %s is not stored yet: %s", self.chat_id, error)
                await asyncio.sleep(_AGAIN_S)
                self._live.unstored.set()

    async def store(self) -> None:
        """Store what is not stored yet. Raises NoSuchChat."""
        async with self._storing:
            events = self._live.to_store()
            async with self._database.write() as connection:
                await chats.require_turn(connection, self._chat)
                await self._add(connection, events)
            self._live.stored(len(events))

    async def note_session(self, vm_id: VmId, session_id: str) -> None:
        """The conversation is known there, under that name. Raises NoSuchChat."""
        async with self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            told = {"vm_id": vm_id, "acp_session_id": session_id}
            await chats.update(connection, self.chat_id, **told)

    async def ask(self, request_id: str, options: tuple[str, ...]) -> None:
        """The chat waits for its person to choose. Raises NoSuchChat."""
        chat = self._chat
        asked = Permission(self.chat_id, request_id, chat.user_id, chat.turn, options, None, None)
        async with self._database.write() as connection:
            await chats.require_turn(connection, chat)
            await chat_events.insert_permission(connection, asked, now())
            await chats.update(connection, self.chat_id, status=ChatStatus.WAITING)

    async def go_on(self) -> None:
        """The chat waits no longer. Raises NoSuchChat."""
        async with self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            await chats.update(connection, self.chat_id, status=ChatStatus.RUNNING)

    async def end(self, reason: TurnEnd, error: PolydevError | None) -> None:
        """The turn is over."""
        try:
            for _ in range(_END_TRIES):
                try:
                    await self._end(reason, error)
                except NoSuchChat:
                    return
                except PolydevError as trouble:
                    log.warning("the end of %s is not stored yet: %s", self.chat_id, trouble)
                    await asyncio.sleep(_AGAIN_S)
                else:
                    return
        finally:
            self._lives.close(self.chat_id, self._live)

    async def _end(self, reason: TurnEnd, error: PolydevError | None) -> None:
        async with self._storing, self._database.write() as connection:
            await chats.require_turn(connection, self._chat)
            await self._add(connection, [*self._live.to_store(), end_of(self._chat, reason, error)])
            await chat_events.close_permissions(connection, self.chat_id, now())
            await chats.end_turn(connection, self._chat, reason, self._bytes, now())

    async def _add(self, connection: Any, events: list[ChatEvent]) -> None:
        if events:
            chat = self._chat
            await chat_events.insert(connection, chat.chat_id, chat.user_id, events)
        if self._title is not None:
            title, by = self._title, TitledBy.AGENT
            await chats.set_title(connection, self.chat_id, title, by, _BUT_PERSON)


def end_of(chat: Chat, reason: TurnEnd, error: PolydevError | None) -> ChatEvent:
    """The last event of a chat's turn."""
    told = None
    if error is not None:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
    data = {"reason": reason.value, "error": told}
    return ChatEvent(chat.turn * TURN_IDS + LAST_IN_TURN, EventKind.TURN_ENDED, data, now())
