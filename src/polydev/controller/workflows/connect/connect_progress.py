"""Observer of the connect sagas: records progress in rows that pages and commands watch.

It also reports a cancel request, which is a column of the session's row.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.workflows.engine.cancel_watch import CancelWatch
from polydev.shared.domain import SessionId, SessionStatus, StepName, credential_id_for, now
from polydev.shared.errors import LoginCancelled, LoginExpired, PolydevError

log = logging.getLogger("polydev.controller.workflows")

_ENDS: dict[type[PolydevError], SessionStatus] = {
    LoginCancelled: SessionStatus.CANCELLED,
    LoginExpired: SessionStatus.EXPIRED,
}


@dataclass(frozen=True, slots=True)
class ConnectProgress:
    """Saga observer of connect sessions."""

    database: Database
    cancel_watch: CancelWatch

    async def step_started(self, subject: str, step: str) -> None:
        """Record the start of a step, and the session's new status."""
        session_id, leaves = SessionId(subject), set[SessionStatus]()
        if step != StepName.WAIT_FOR_CAPACITY:
            leaves.add(SessionStatus.QUEUED)
        if step not in (StepName.START_LOGIN, StepName.WAIT_FOR_USER):
            leaves.add(SessionStatus.WAITING)
        async with self.database.write() as connection:
            await sessions.start_step(connection, session_id, step, now())
            await sessions.set_step(connection, session_id, step, leaves)
        log.info("session %s: %s started", subject, step)

    async def step_ended(self, subject: str, step: str, outcome: str) -> None:
        """Record the outcome of a step."""
        async with self.database.write() as connection:
            await sessions.end_step(connection, SessionId(subject), step, now(), outcome)
        log.info("session %s: %s %s", subject, step, outcome)

    async def wait_for_cancel(self, subject: str) -> PolydevError:
        """Return once the user cancels the session."""
        await self.cancel_watch.wait_for_cancel(SessionId(subject))
        return LoginCancelled("The login was cancelled")

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        """End the session. In the same transaction, its credential replaces older ones."""
        session_id = SessionId(subject)
        async with self.database.write() as connection:
            if failure is None:
                await credentials.delete_replaced(connection, credential_id_for(session_id))
                await sessions.end(connection, session_id, SessionStatus.COMPLETED, now())
                log.info("session %s: completed", subject)
                return
            status = _ENDS.get(type(failure), SessionStatus.FAILED)
            problem = (failure.code, failure.line())
            await sessions.end(connection, session_id, status, now(), problem)
        log.info("session %s: %s (%s)", subject, status, failure.code)
