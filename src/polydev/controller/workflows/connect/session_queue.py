"""The queue of connect sessions: each waits until there is room for both of its machines.

A session waits while its status is `queued`. Every controller looks at the whole queue when
something has changed, and admits whom it can, under the lock of placement: so it does not matter
which of them looks, nor which of them runs a session's workflow. A session that waits costs an
event and a place in a dictionary; it does not look at the database itself.

Whose turn it is: whoever has the fewest machines running, then whoever has waited longest; but who
has waited for `_PATIENCE_S` goes before all that have not. If the first does not fit, nobody goes
before it, so that a large one is not overtaken for ever; one that needs room on the single host
that has its CLI machine's disk keeps others from that host only.

Only so many sessions are underway at once, those that wait for their person aside: machines that
all boot at the same moment are ready later than one after the other, and so is every answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement import Fleet
from polydev.controller.placement.claims import lock_placement
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.connect.sessions import QueuedSession
from polydev.controller.store.queries.machines import capacity
from polydev.controller.workflows.connect.session_placement import Refusal, SessionPlacement
from polydev.controller.workflows.machines.machines import MachineOperations
from polydev.shared.domain import ConnectSession, SessionId, SessionStatus, UserId, now
from polydev.shared.errors import LoginCancelled, NoCapacity, PolydevError

log = logging.getLogger("polydev.controller.workflows")

_PATIENCE_S = 120.0
_BATCH = 32
"""How many are admitted in one transaction: others write, too."""
_DEBOUNCE_S = 0.05
_RETRY_S = 2.0
"""While somebody waits: a host may answer again, or another controller change something."""


class SessionQueue:
    """The queue, as this controller sees it. `run` beside the API; `wait` in a workflow's step."""

    def __init__(self, database: Database, machines: MachineOperations) -> None:
        self._database = database
        self._machines = machines
        self._placement = SessionPlacement(machines)
        self._limit = timedelta(seconds=machines.settings.queue_limit_s)
        self._session_limit = machines.settings.sessions_at_once
        self._events: dict[SessionId, asyncio.Event] = {}
        self._refusals: dict[SessionId, Refusal] = {}
        self._positions: dict[SessionId, int] = {}
        self._recheck = asyncio.Event()

    async def wait(self, subject: str) -> None:
        """Return when the session has its machines' room.

        Raises: LoginCancelled; NoCapacity when it has waited too long, or will never fit.
        """
        session_id = SessionId(subject)
        news = self._events.setdefault(session_id, asyncio.Event())
        try:
            while True:
                news.clear()
                async with self._database.read() as connection:
                    session = await sessions.get(connection, session_id)
                if session.status is not SessionStatus.QUEUED:
                    return
                reason = self._queue_failure(session)
                if reason is not None and await self._leave_queue(session_id):
                    raise reason
                self._recheck.set()
                left = session.created_at + self._limit - now()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(left.total_seconds(), 0)):
                        await news.wait()
        finally:
            self._events.pop(session_id, None)

    def ahead_of(self, session_id: SessionId) -> int | None:
        """How many are before it in the queue, as of the last look; None if it does not wait."""
        return self._positions.get(session_id)

    async def run(self) -> None:
        """Look whenever something has changed, until cancelled."""
        while True:
            change = self._database.next_change()
            self._recheck.clear()
            try:
                await self.run_once()
            except (PolydevError, SQLAlchemyError) as error:
                log.warning("looking at the queue: %s", error)
            await _first_of(change, self._recheck, _RETRY_S if self._positions else None)
            await asyncio.sleep(_DEBOUNCE_S)

    async def run_once(self) -> None:
        """Admit whom there is room for, and wake those of this controller that have news."""
        async with self._database.read() as connection:
            queue = await sessions.list_queued(connection)
        if queue:
            queue = await self._admit()
        waiting = {it.session_id: it for it in queue}
        self._positions = {it.session_id: place for place, it in enumerate(queue)}
        for session_id, news in self._events.items():
            it = waiting.get(session_id)
            refusal = self._refusals.get(session_id)
            if it is None or it.is_cancelled or (refusal is not None and refusal.is_permanent):
                news.set()

    async def _admit(self) -> list[QueuedSession]:
        """Claim for the first in the queue, one after the other. Returns who still waits."""
        async with self._database.write() as connection:
            fleet = await self._machines.placement.load_fleet(connection)
            queue = [it for it in await sessions.list_queued(connection) if not it.is_cancelled]
            running = Counter(await capacity.count_running_by_user(connection))
            waiting = list(queue)
            self._refusals.clear()
            free = self._session_limit - await sessions.count_running(connection)
            for _ in range(min(free, _BATCH)):
                chosen = await self._admit_next(connection, fleet, waiting, running)
                if chosen is None:
                    break
                waiting.remove(chosen)
                running[chosen.user_id] += 1
            else:
                if free > _BATCH:
                    self._recheck.set()  # there may be room for more
        at = now()
        return sorted(waiting, key=lambda it: _priority(it, running, at))

    async def _admit_next(
        self,
        connection: AsyncConnection,
        fleet: Fleet,
        waiting: list[QueuedSession],
        running: Counter[UserId],
    ) -> QueuedSession | None:
        """Admit the first that may go now; None if there is none."""
        at = now()
        for it in sorted(waiting, key=lambda it: _priority(it, running, at)):
            if it.session_id in self._refusals:
                continue
            refusal = await self._placement.claim(connection, fleet, it)
            if refusal is None:
                log.info("session %s: there is room for its machines", it.session_id)
                return it
            self._refusals[it.session_id] = refusal
            if refusal.is_permanent or not refusal.lacks_capacity:
                continue
            if refusal.host_id is None:
                return None
            fleet.withheld.add(refusal.host_id)
        return None

    def _queue_failure(self, session: ConnectSession) -> PolydevError | None:
        if session.cancel_requested_at is not None:
            return LoginCancelled("The login was cancelled")
        refusal = self._refusals.get(session.session_id)
        if refusal is not None and refusal.is_permanent:
            return refusal.error
        if now() < session.created_at + self._limit:
            return None
        why = refusal.error.message if refusal else "others were before it"
        return NoCapacity(
            f"No room became free within {self._limit.total_seconds():g} s: {why}",
            hint="Connect again later, or stop or destroy machines that nobody needs",
        )

    async def _leave_queue(self, session_id: SessionId) -> bool:
        """Wait no longer. False if it was admitted at this moment."""
        async with self._database.write() as connection:
            await lock_placement(connection)
            return await sessions.leave_queue(connection, session_id)


def _priority(
    it: QueuedSession, running: Counter[UserId], at: datetime
) -> tuple[bool, int, datetime, SessionId]:
    """Sorts the queue: the smallest goes first."""
    is_patient = at - it.created_at < timedelta(seconds=_PATIENCE_S)
    machines = running[it.user_id] if is_patient else 0
    return is_patient, machines, it.created_at, it.session_id


async def _first_of(one: asyncio.Event, other: asyncio.Event, limit_s: float | None) -> None:
    """Return when one of them is set, or the time is over."""
    waits = [asyncio.create_task(one.wait()), asyncio.create_task(other.wait())]
    try:
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
