"""Notes of sagas that tell nobody how they go but the log, and that nobody can cancel.

What comes of them is in the rows that their steps change.
"""

from __future__ import annotations

import asyncio
import logging

from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.workflows")


class LogOnlyObserver:
    """The `Notes` of a saga that runs to its end whoever watches."""

    async def step_started(self, subject: str, step: str) -> None:
        log.info("%s: %s", subject, step)

    async def step_ended(self, subject: str, step: str, outcome: str) -> None:
        log.info("%s: %s %s", subject, step, outcome)

    async def wait_for_cancel(self, subject: str) -> PolydevError:
        never: asyncio.Future[PolydevError] = asyncio.get_running_loop().create_future()
        return await never

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        if failure is not None:
            log.error("%s: %s", subject, failure.line())
