"""How much of what lasts one person may have at a time at one controller.

A request that waits, a stream, a program or a chat turn costs memory here, looks at the database
whenever anybody changes it, or keeps a program running in a machine, for as long as it lasts. So
each person has so many and no more, that nobody can take the controller from all others. The
routers count with it; administrators are held to it only where nobody needs many.
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
    """Counts one kind of thing, for each person."""

    def __init__(self, limit: int, what: str, *, include_administrators: bool = False) -> None:
        """`what`: those things, as the message calls them. `everybodys`: administrators', too."""
        self.limit = limit
        self._include_administrators = include_administrators
        self._what = what
        self._counts: Counter[UserId] = Counter()

    @contextmanager
    def acquire(self, caller: Caller) -> Iterator[None]:
        """One of the caller's, while this is entered. Raises TooManyRequests."""
        if caller.owner_filter is None and not self._include_administrators:
            yield
            return
        user_id = caller.user_id
        if self._counts[user_id] >= self.limit:
            raise TooManyRequests(
                f"You have {self.limit} {self._what} open already",
                hint="Close one of them, or let one end",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._counts[user_id] += 1
        try:
            yield
        finally:
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id]


LONG_POLLS = ConcurrencyLimit(64, "requests that wait")
SESSION_STREAMS = ConcurrencyLimit(16, "streams of sessions")
EVENT_STREAMS = ConcurrencyLimit(16, "event streams", include_administrators=True)
CHAT_STREAMS = ConcurrencyLimit(16, "streams of chats", include_administrators=True)
PROGRAMS = ConcurrencyLimit(32, "programs in machines")
LIVE_VIEWS = ConcurrencyLimit(4, "live views", include_administrators=True)
TERMINALS = ConcurrencyLimit(16, "terminals", include_administrators=True)
FILE_TRANSFERS = ConcurrencyLimit(8, "files on their way")
CHAT_TURNS = ConcurrencyLimit(4, "chat turns")
"""What a turn answers is held until it ends."""
CHECKS = ConcurrencyLimit(4, "examinations")
"""Each starts programs in machines."""
