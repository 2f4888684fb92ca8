"""Work that is not left half done when whoever waits for it is cancelled.

A thread cannot be cancelled: who stops waiting for one that writes a file and begins to undo it
works against it. `machines.py`, `hibernation.py` and `snapshots/` do such work to its end first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns or raises; cancelled meanwhile, it is cancelled after the work's end.

    The work itself must be bounded.
    """
    task = asyncio.ensure_future(work)
    cut: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cut = error
    if cut is not None:
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what is told
        raise cut
    return task.result()
