"""Polling, for conditions without a notification."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

POLL_INTERVAL_S = 0.5


async def wait_until(condition: Callable[[], Awaitable[bool]], limit_s: float) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_INTERVAL_S)
