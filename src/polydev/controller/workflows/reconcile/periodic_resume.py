"""What must be finished and may have lost its workflow: looked for now and then, and gone on with.

`app.py` runs it beside the API. A controller may die between the row that says what is wanted and
the workflow that does it, and a workflow gives up on a host that is away for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger("polydev.controller.workflows")

PERIOD_S = 30.0


async def run_periodically(work: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do each of them, at once and then every half minute, until cancelled."""
    while True:
        for resume in work:
            try:
                await resume()
            except Exception as error:
                log.error("%s failed: %s", resume.__qualname__, type(error).__name__)
        await asyncio.sleep(PERIOD_S)
