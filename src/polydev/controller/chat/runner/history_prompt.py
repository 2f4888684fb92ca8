"""What was said in a chat, for a CLI that no longer knows it: its end, in plain words."""

from __future__ import annotations

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events
from polydev.shared.domain import TURN_IDS, Chat, EventKind

_MAX_CHARACTERS = 24 * 1024
_TURNS = 20
_SPEAKERS = {EventKind.USER: "User", EventKind.TEXT: "Assistant"}
_OPENING = (
    "(This goes on from an earlier conversation, whose end follows. Take it as said between us; "
    "what I say now comes after it.)"
)


async def of(database: Database, chat: Chat) -> str:
    """The last turns before the chat's present one."""
    known, first = max(0, chat.turn - _TURNS) * TURN_IDS, chat.turn * TURN_IDS
    said: list[str] = []
    while True:
        async with database.read() as connection:
            found = await chat_events.list_after(connection, chat.chat_id, known)
        for event in chat_events.merge_text(it for it in found if it.kind in _SPEAKERS):
            if event.event_id < first:
                said.append(f"{_SPEAKERS[event.kind]}: {event.data['text']}")
        if not found or found[-1].event_id >= first:
            break
        known = found[-1].event_id
    return "\n\n".join([_OPENING, "\n\n".join(said)[-_MAX_CHARACTERS:]])
