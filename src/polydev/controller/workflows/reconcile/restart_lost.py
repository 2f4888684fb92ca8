"""Periodic restart of work that must finish but may have lost its workflow.

A controller may die after it has written the row of a request and before it has started the
workflow. A workflow also gives up if a host is unreachable for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger("polydev.controller.workflows")

PERIOD_S = 30.0


async def restart_lost_periodically(restarts: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run each function now and then every half minute, until cancelled."""
    while True:
        for restart in restarts:
            try:
                await restart()
            except Exception as error:
                log.error("%s failed: %s", restart.__qualname__, type(error).__name__)
        await asyncio.sleep(PERIOD_S)
