"""Word of changes: one event for everybody who waits for the next write.

`Database` tells and asks; waiters read anew and compare. `SharedChanges` in `notifications.py` also
brings word of other controllers' writes.
"""

from __future__ import annotations

import asyncio


class ChangeBus:
    """Changes that this process makes."""

    def __init__(self) -> None:
        self._change = asyncio.Event()

    def tell(self) -> None:
        """Something was committed: wake everybody who waits."""
        self._change.set()
        self._change = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set at the next change."""
        return self._change

    async def close(self) -> None:
        """No more word from elsewhere."""
