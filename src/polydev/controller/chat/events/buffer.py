"""In-memory buffer of running turns, so that subscribers see events before they are stored.

A turn appends events to its `LiveTurn`; `EventWriter` stores them in batches a moment later.
Subscribers take from here what the database does not have yet. Text that arrives in the same
iteration of the event loop becomes one event. Nothing here waits.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from polydev.shared.domain import ASKING_IDS, TURN_IDS, ChatEvent, ChatId, EventKind, now

_RETAINED = 256
"""Stored events that stay in memory for subscribers that lag behind."""
_JOINED_KINDS = (EventKind.TEXT, EventKind.THOUGHT)
_MAX_JOINED_CHARACTERS = 16 * 1024


class LiveTurn:
    """Events of one running turn.

    All up to `floor` are stored; all later ones are here.
    """

    def __init__(self, turn: int, notify: Callable[[], None]) -> None:
        self.floor = turn * TURN_IDS + ASKING_IDS
        self.has_pending = asyncio.Event()
        self._next_id = self.floor + 1
        self._events: list[ChatEvent] = []
        self._stored_count = 0
        self._open: ChatEvent | None = None
        self._notify = notify
        self._notify_handle: asyncio.Handle | None = None

    def append(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Add an event, or extend the open text."""
        if self._open is not None and self._can_join(self._open, kind, data):
            self._open.data["text"] += data["text"]
            return
        self._seal()
        event = ChatEvent(self._next_id, kind, data, now())
        self._next_id += 1
        if kind in _JOINED_KINDS:
            self._open = event
        else:
            self._events.append(event)
        if self._notify_handle is None:
            self._notify_handle = asyncio.get_running_loop().call_soon(self._notify_now)

    def after(self, event_id: int) -> list[ChatEvent]:
        """Return events after an id that is not below `floor`."""
        start = bisect_right(self._events, event_id, key=lambda it: it.event_id)
        return self._events[start:]

    def take_pending(self) -> list[ChatEvent]:
        """Return the events that are not stored yet."""
        self._seal()
        self.has_pending.clear()
        return self._events[self._stored_count :]

    def mark_stored(self, count: int) -> None:
        """Record that `count` more events are stored, and drop the oldest."""
        self._stored_count += count
        surplus = self._stored_count - _RETAINED
        if surplus > 0:
            self.floor = self._events[surplus - 1].event_id
            del self._events[:surplus]
            self._stored_count -= surplus

    def _can_join(self, last: ChatEvent, kind: EventKind, data: dict[str, Any]) -> bool:
        length = len(last.data["text"]) + len(data.get("text", ""))
        return kind is last.kind and length <= _MAX_JOINED_CHARACTERS

    def _seal(self) -> None:
        if self._open is not None:
            self._events.append(self._open)
            self._open = None

    def _notify_now(self) -> None:
        self._notify_handle = None
        self._seal()
        self.has_pending.set()
        self._notify()


class LiveTurns:
    """The turns that run in this controller, by chat."""

    def __init__(self) -> None:
        self._turns: dict[ChatId, LiveTurn] = {}
        self._changes: WeakValueDictionary[ChatId, asyncio.Event] = WeakValueDictionary()

    def get(self, chat_id: ChatId) -> LiveTurn | None:
        return self._turns.get(chat_id)

    def open(self, chat_id: ChatId, turn: int) -> LiveTurn:
        """Begin buffering a turn. The user's message is already stored."""
        live = self._turns[chat_id] = LiveTurn(turn, lambda: self._notify(chat_id))
        self._notify(chat_id)
        return live

    def close(self, chat_id: ChatId, live: LiveTurn) -> None:
        """End a turn of which everything is stored."""
        if self._turns.get(chat_id) is live:
            del self._turns[chat_id]
        self._notify(chat_id)

    def next_change(self, chat_id: ChatId) -> asyncio.Event:
        """Return an event that is set when the chat's turn changes.

        Get it, then read the events, then wait: in any other order a change is missed.
        """
        event = self._changes.get(chat_id)
        if event is None:
            event = self._changes[chat_id] = asyncio.Event()
        return event

    def _notify(self, chat_id: ChatId) -> None:
        event = self._changes.pop(chat_id, None)
        if event is not None:
            event.set()
