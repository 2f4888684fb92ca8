"""The queue of connect sessions: each waits until its machines have capacity.

A session is in the queue while its status is `queued`. After each change, every controller
processes the whole queue under the placement lock. So it does not matter which controller admits a
session, or runs its workflow. A waiting session costs an event and a dictionary entry; it does not
poll the database.

Order: users with the fewest running machines first, then the longest wait. Sessions that have
waited for `_PATIENCE_S` come before all others. If the first session does not fit, no other
overtakes it, so large ones do not starve. If it needs one certain host, which has its CLI machine's
disk, it blocks only that host.

The number of sessions that run at once is limited, except those that wait for their user: machines
that boot at the same time are ready later than machines that boot one after the other.
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
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import ConnectSession, SessionId, SessionStatus, UserId, now
from polydev.shared.errors import LoginCancelled, NoCapacity, PolydevError

log = logging.getLogger("polydev.controller.workflows")

_PATIENCE_S = 120.0
_BATCH = 32
"""Number of sessions to admit per transaction, so other writers get their turn."""
_DEBOUNCE_S = 0.05
_RETRY_S = 2.0
"""Interval while sessions wait: a host may answer again, or another controller may act."""


class SessionQueue:
    """Admits queued sessions. `run` is a background task; a workflow step calls `wait`."""

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
        """Wait until the session is admitted.

        Raises: LoginCancelled; NoCapacity if it has waited too long, or can never fit.
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
        """Return the number of sessions ahead at the last check. None if it is not queued."""
        return self._positions.get(session_id)

    async def run(self) -> None:
        """Process the queue after each change, until cancelled."""
        while True:
            change = self._database.next_change()
            self._recheck.clear()
            try:
                await self.run_once()
            except (PolydevError, SQLAlchemyError) as error:
                log.warning("cannot process the queue: %s", error)
            await _first_of(change, self._recheck, _RETRY_S if self._positions else None)
            await asyncio.sleep(_DEBOUNCE_S)

    async def run_once(self) -> None:
        """Admit sessions that fit, and wake this controller's sessions that have news."""
        async with self._database.read() as connection:
            queue = await sessions.list_queued(connection)
        if queue:
            queue = await self._admit()
        waiting = {it.session_id: it for it in queue}
        self._positions = {it.session_id: position for position, it in enumerate(queue)}
        for session_id, news in self._events.items():
            it = waiting.get(session_id)
            refusal = self._refusals.get(session_id)
            if it is None or it.is_cancelled or (refusal is not None and refusal.is_permanent):
                news.set()

    async def _admit(self) -> list[QueuedSession]:
        """Admit sessions in order. Returns those that still wait."""
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
                    self._recheck.set()  # there may be capacity for more
        at = now()
        return sorted(waiting, key=lambda it: _priority(it, running, at))

    async def _admit_next(
        self,
        connection: AsyncConnection,
        fleet: Fleet,
        waiting: list[QueuedSession],
        running: Counter[UserId],
    ) -> QueuedSession | None:
        """Admit the first session that fits. None if there is none."""
        at = now()
        for it in sorted(waiting, key=lambda it: _priority(it, running, at)):
            if it.session_id in self._refusals:
                continue
            refusal = await self._placement.claim(connection, fleet, it)
            if refusal is None:
                log.info("session %s: admitted", it.session_id)
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
        why = refusal.error.message if refusal else "other sessions were ahead"
        return NoCapacity(
            f"No capacity became free within {self._limit.total_seconds():g} s: {why}",
            hint="Connect again later, or stop or destroy unused machines",
        )

    async def _leave_queue(self, session_id: SessionId) -> bool:
        """Leave the queue. False if the session has just been admitted."""
        async with self._database.write() as connection:
            await lock_placement(connection)
            return await sessions.leave_queue(connection, session_id)


def _priority(
    it: QueuedSession, running: Counter[UserId], at: datetime
) -> tuple[bool, int, datetime, SessionId]:
    """Return the sort key of the queue. The smallest goes first."""
    is_patient = at - it.created_at < timedelta(seconds=_PATIENCE_S)
    machines = running[it.user_id] if is_patient else 0
    return is_patient, machines, it.created_at, it.session_id


async def _first_of(one: asyncio.Event, other: asyncio.Event, limit_s: float | None) -> None:
    """Wait until one event is set, or for the time limit."""
    waits = [asyncio.create_task(one.wait()), asyncio.create_task(other.wait())]
    try:
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
