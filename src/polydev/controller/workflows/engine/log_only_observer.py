"""Saga observer that only logs. Its sagas cannot be cancelled."""

from __future__ import annotations

import asyncio
import logging

from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.workflows")


class LogOnlyObserver:
    """Observer of a saga that always runs to its end."""

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
