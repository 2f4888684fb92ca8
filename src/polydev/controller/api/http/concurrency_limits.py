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


class AtOnce:
    """Counts one kind of thing, for each person."""

    def __init__(self, limit: int, what: str, *, everybodys: bool = False) -> None:
        """`what`: those things, as the message calls them. `everybodys`: administrators', too."""
        self.limit = limit
        self._everybodys = everybodys
        self._what = what
        self._counts: Counter[UserId] = Counter()

    @contextmanager
    def of(self, caller: Caller) -> Iterator[None]:
        """One of the caller's, while this is entered. Raises TooManyRequests."""
        if caller.bounds is None and not self._everybodys:
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


WAITING = AtOnce(64, "requests that wait")
SESSION_STREAMS = AtOnce(16, "streams of sessions")
EVENT_STREAMS = AtOnce(16, "event streams", everybodys=True)
CHAT_STREAMS = AtOnce(16, "streams of chats", everybodys=True)
PROGRAMS = AtOnce(32, "programs in machines")
LIVE_VIEWS = AtOnce(4, "live views", everybodys=True)
TERMINALS = AtOnce(16, "terminals", everybodys=True)
TRANSFERS = AtOnce(8, "files on their way")
CHAT_TURNS = AtOnce(4, "chat turns")
"""What a turn answers is held until it ends."""
EXAMINATIONS = AtOnce(4, "examinations")
"""Each starts programs in machines."""
