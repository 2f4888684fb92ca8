"""Notify waiters of database changes: one event per commit.

Waiters read again and compare. `PgChangeBus` also covers the commits of other controllers.
"""

from __future__ import annotations

import asyncio


class ChangeBus:
    """Changes made by this process."""

    def __init__(self) -> None:
        self._change = asyncio.Event()

    def publish(self) -> None:
        """Wake all waiters after a commit."""
        self._change.set()
        self._change = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Return an event that is set at the next change."""
        return self._change

    async def close(self) -> None:
        """Stop listening to other controllers."""
