"""Limit the long-running requests of each user at one controller.

A long poll, a stream, a program or a chat turn costs memory here, queries the database at each
change, or keeps a program running in a machine. A limit per user keeps one user from starving all
others. Some limits also hold for administrators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from polydev.controller.access import Caller
from polydev.shared.domain import UserId
from polydev.shared.errors import TooManyRequests

_RETRY_AFTER_S = 15


class ConcurrencyLimit:
    """A limit on one kind of request, counted per user."""

    def __init__(self, limit: int, label: str, *, include_administrators: bool = False) -> None:
        """`label` names these requests in the error message."""
        self.limit = limit
        self._include_administrators = include_administrators
        self._label = label
        self._counts: Counter[UserId] = Counter()

    @contextmanager
    def acquire(self, caller: Caller) -> Iterator[None]:
        """Hold one of the caller's slots. Raises TooManyRequests."""
        if caller.owner_filter is None and not self._include_administrators:
            yield
            return
        user_id = caller.user_id
        if self._counts[user_id] >= self.limit:
            raise TooManyRequests(
                f"You have {self.limit} {self._label} open already",
                hint="Close one, or wait until one ends",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._counts[user_id] += 1
        try:
            yield
        finally:
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id]


LONG_POLLS = ConcurrencyLimit(64, "waiting requests")
SESSION_STREAMS = ConcurrencyLimit(16, "session streams")
EVENT_STREAMS = ConcurrencyLimit(16, "event streams", include_administrators=True)
CHAT_STREAMS = ConcurrencyLimit(16, "chat streams", include_administrators=True)
PROGRAMS = ConcurrencyLimit(32, "programs in machines")
LIVE_VIEWS = ConcurrencyLimit(4, "live views", include_administrators=True)
TERMINALS = ConcurrencyLimit(16, "terminals", include_administrators=True)
FILE_TRANSFERS = ConcurrencyLimit(8, "file transfers")
CHAT_TURNS = ConcurrencyLimit(4, "chat turns")
"""The answer of a turn is held in memory until the turn ends."""
CHECKS = ConcurrencyLimit(4, "checks")
"""Each check starts programs in machines."""
