"""Work that is not left half done when whoever waits for it is cancelled.

A thread cannot be cancelled: who stops waiting for one that writes a file and begins to undo it
works against it. Whoever writes in a machine's folder does so to its end, so that nobody is left in
a folder that is being removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from polydev.shared.errors import PolydevError

P = ParamSpec("P")
T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
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


async def shielded_or_undo(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[object]]
) -> T:
    """What the work returns or raises; cancelled meanwhile, what it returned is undone.

    Work and undoing must be bounded. What the host says against the one or the other is lost then.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await run_shielded(_undone(task, undo))
        raise


async def _undone(task: asyncio.Task[T], undo: Callable[[T], Awaitable[object]]) -> None:
    with suppress(PolydevError, OSError):
        await undo(await task)


async def run_in_thread_shielded(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What blocking work returns or raises, done in a thread, to its end."""
    return await run_shielded(asyncio.to_thread(work, *args, **kwargs))
