"""Cancel requests of connect sessions, polled once for all sessions of this controller.

`ConnectProgress` waits here while a step runs. One task queries the database for all sessions, once
after each burst of changes, and only while some session waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import defaultdict

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.shared.domain import SessionId
from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.workflows")

_DEBOUNCE_S = 0.1
_RETRY_S = 1.0


class CancelWatch:
    """Waits for cancel requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: defaultdict[SessionId, set[asyncio.Event]] = defaultdict(set)
        self._watching: asyncio.Task[None] | None = None

    async def wait_for_cancel(self, session_id: SessionId) -> None:
        """Return once the session's cancellation is requested."""
        news = asyncio.Event()
        self._waiting[session_id].add(news)
        if self._watching is None:
            # An empty context, since the task outlives the step that starts it.
            self._watching = asyncio.create_task(self._watch(), context=contextvars.Context())
        try:
            async with self._database.read() as connection:
                session = await sessions.get(connection, session_id)
            if session.cancel_requested_at is None:
                await news.wait()
        finally:
            self._waiting[session_id].discard(news)
            if not self._waiting[session_id]:
                del self._waiting[session_id]
            if not self._waiting and self._watching is not None:
                self._watching.cancel()
                self._watching = None

    async def _watch(self) -> None:
        while True:
            change = self._database.next_change()
            for session_id in await self._list_requested():
                for news in self._waiting.get(session_id, ()):
                    news.set()
            await change.wait()
            await asyncio.sleep(_DEBOUNCE_S)  # one query for a burst of changes

    async def _list_requested(self) -> list[SessionId]:
        while True:
            try:
                async with self._database.read() as connection:
                    return await sessions.list_cancel_requested(connection)
            except PolydevError as error:
                log.warning("cannot read cancel requests: %s", error.line())
            await asyncio.sleep(_RETRY_S)
