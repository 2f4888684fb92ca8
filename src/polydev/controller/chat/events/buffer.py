"""What turns tell while they go on, in memory: whoever listens has it at once.

A turn (`turns.py`) adds events to its `Live`, and stores them in batches a moment later; listeners
(`following.py`) take from it what the database does not have yet. Pieces of text that come in the
same moment become one event. Nothing here waits.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from polydev.shared.domain import ASKING_IDS, TURN_IDS, ChatEvent, ChatId, EventKind, now

_KEPT = 256
"""How many stored events stay for listeners that are a little behind."""
_JOINED = (EventKind.TEXT, EventKind.THOUGHT)
_JOINED_CHARACTERS = 16 * 1024


class Live:
    """The events of one turn that goes on. All up to `floor` are stored; all after it are here."""

    def __init__(self, turn: int, tell: Callable[[], None]) -> None:
        self.floor = turn * TURN_IDS + ASKING_IDS
        self.unstored = asyncio.Event()
        """Set while there is something to store."""
        self._next = self.floor + 1
        self._events: list[ChatEvent] = []
        self._stored = 0
        self._open: ChatEvent | None = None
        self._tell = tell
        self._telling: asyncio.Handle | None = None

    def add(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Tell something."""
        if self._open is not None and self._is_more(self._open, kind, data):
            self._open.data["text"] += data["text"]
            return
        self._seal()
        event = ChatEvent(self._next, kind, data, now())
        self._next += 1
        if kind in _JOINED:
            self._open = event
        else:
            self._events.append(event)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell_now)

    def after(self, event_id: int) -> list[ChatEvent]:
        """Those after an id that is not below the floor."""
        start = bisect_right(self._events, event_id, key=lambda it: it.event_id)
        return self._events[start:]

    def to_store(self) -> list[ChatEvent]:
        """Those that are not stored yet."""
        self._seal()
        self.unstored.clear()
        return self._events[self._stored :]

    def stored(self, count: int) -> None:
        """So many more are stored: the oldest need not be here any longer."""
        self._stored += count
        gone = self._stored - _KEPT
        if gone > 0:
            self.floor = self._events[gone - 1].event_id
            del self._events[:gone]
            self._stored -= gone

    def _is_more(self, last: ChatEvent, kind: EventKind, data: dict[str, Any]) -> bool:
        length = len(last.data["text"]) + len(data.get("text", ""))
        return kind is last.kind and length <= _JOINED_CHARACTERS

    def _seal(self) -> None:
        if self._open is not None:
            self._events.append(self._open)
            self._open = None

    def _tell_now(self) -> None:
        self._telling = None
        self._seal()
        self.unstored.set()
        self._tell()


class Lives:
    """The turns that go on in this controller."""

    def __init__(self) -> None:
        self._lives: dict[ChatId, Live] = {}
        self._news: WeakValueDictionary[ChatId, asyncio.Event] = WeakValueDictionary()

    def get(self, chat_id: ChatId) -> Live | None:
        return self._lives.get(chat_id)

    def open(self, chat_id: ChatId, turn: int) -> Live:
        """A turn begins: what asks it is stored, and all that follows is told here."""
        live = self._lives[chat_id] = Live(turn, lambda: self._tell(chat_id))
        self._tell(chat_id)
        return live

    def close(self, chat_id: ChatId, live: Live) -> None:
        """The turn is over, and everything of it is stored."""
        if self._lives.get(chat_id) is live:
            del self._lives[chat_id]
        self._tell(chat_id)

    def next_news(self, chat_id: ChatId) -> asyncio.Event:
        """Set when the chat's turn tells something, begins or ends. Take it, look, then wait."""
        event = self._news.get(chat_id)
        if event is None:
            event = self._news[chat_id] = asyncio.Event()
        return event

    def _tell(self, chat_id: ChatId) -> None:
        event = self._news.pop(chat_id, None)
        if event is not None:
            event.set()
