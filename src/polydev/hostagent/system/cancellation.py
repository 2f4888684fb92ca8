"""Shield work from cancellation.

A thread cannot be cancelled. A caller that stops waiting for one and undoes its work races against
it. So everything that writes into a machine's folder runs to completion first.
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
    """Run `work` to completion even if the caller is cancelled; then raise the cancellation.

    The work itself must be bounded.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it
        raise cancellation
    return task.result()


async def shielded_or_undo(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[object]]
) -> T:
    """Run `work`; if the caller is cancelled, undo its result.

    Both must be bounded. Their errors are dropped after a cancellation.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await run_shielded(_undo_result(task, undo))
        raise


async def _undo_result(task: asyncio.Task[T], undo: Callable[[T], Awaitable[object]]) -> None:
    with suppress(PolydevError, OSError):
        await undo(await task)


async def run_in_thread_shielded(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread, to completion even if the caller is cancelled."""
    return await run_shielded(asyncio.to_thread(work, *args, **kwargs))
