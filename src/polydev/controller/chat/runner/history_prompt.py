"""Build a prompt that repeats a conversation to a CLI that lost it."""

from __future__ import annotations

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events
from polydev.shared.domain import TURN_IDS, Chat, EventKind

_MAX_CHARACTERS = 24 * 1024
_MAX_TURNS = 20
_SPEAKERS = {EventKind.USER: "User", EventKind.TEXT: "Assistant"}
_INTRODUCTION = (
    "(This continues an earlier conversation. Its last part follows. Treat it as our conversation "
    "so far; my next message comes after it.)"
)


async def build(database: Database, chat: Chat) -> str:
    """Build the prompt from the last turns before the current one."""
    known, first = max(0, chat.turn - _MAX_TURNS) * TURN_IDS, chat.turn * TURN_IDS
    messages: list[str] = []
    while True:
        async with database.read() as connection:
            found = await chat_events.list_after(connection, chat.chat_id, known)
        for event in chat_events.merge_text(it for it in found if it.kind in _SPEAKERS):
            if event.event_id < first:
                messages.append(f"{_SPEAKERS[event.kind]}: {event.data['text']}")
        if not found or found[-1].event_id >= first:
            break
        known = found[-1].event_id
    return "\n\n".join([_INTRODUCTION, "\n\n".join(messages)[-_MAX_CHARACTERS:]])
