"""Shielded work completes or is undone, however often its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from polydev.hostagent.system.cancellation import (
    run_in_thread_shielded,
    run_shielded,
    shielded_or_undo,
)


class Work:
    """Blocking work that ends on demand."""

    def __init__(self) -> None:
        self.began, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.undone: list[str] = []

    def __call__(self) -> str:
        self.began.set()
        assert self.may_end.wait(60)
        self.ended.set()
        return "made"

    async def undo(self, made: str) -> None:
        await asyncio.sleep(0)
        self.undone.append(made)


async def cancelled_twice(waiting: asyncio.Task[str], work: Work) -> None:
    """Cancel the caller twice, with time to fail after each."""
    await asyncio.to_thread(work.began.wait, 60)
    for _ in range(2):
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended.is_set()


async def test_result_of_a_cancelled_call_is_undone() -> None:
    work = Work()
    waiting = asyncio.create_task(shielded_or_undo(asyncio.to_thread(work), work.undo))
    await cancelled_twice(waiting, work)
    assert work.undone == ["made"]


async def test_awaited_result_is_not_undone() -> None:
    work = Work()
    work.may_end.set()
    assert await shielded_or_undo(asyncio.to_thread(work), work.undo) == "made"
    assert work.undone == []


async def test_failed_call_is_not_undone() -> None:
    work = Work()

    async def failing() -> str:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await shielded_or_undo(failing(), work.undo)
    assert work.undone == []


async def test_cancelled_caller_waits_for_the_thread() -> None:
    work = Work()
    await cancelled_twice(asyncio.create_task(run_in_thread_shielded(work)), work)


async def test_cancelled_caller_waits_for_shielded_work() -> None:
    work = Work()
    await cancelled_twice(asyncio.create_task(run_shielded(asyncio.to_thread(work))), work)
