"""Rows of `auth_sessions` and `session_steps`: connect sessions and how they went.

A session that has ended never changes again: every update here leaves it alone. One live session
per person and provider is the database's own rule (a unique index), so it holds whoever asks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import keyset
from polydev.controller.store.engine.event_outbox import emit
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.tables import GONE_STATES, auth_sessions, session_steps, vms
from polydev.controller.telemetry import metrics
from polydev.shared.domain import (
    ConnectSession,
    CredentialKind,
    Machine,
    SessionId,
    SessionStatus,
    SessionStep,
    UserId,
    VmId,
)
from polydev.shared.errors import NoSuchSession

_LIVE = auth_sessions.c.ended_at.is_(None)


@dataclass(frozen=True, slots=True)
class QueuedSession:
    """A session that waits for room."""

    session_id: SessionId
    user_id: UserId
    created_at: datetime
    is_cancelled: bool
    method: CredentialKind = CredentialKind.LOGIN


_EMITTED = [
    auth_sessions.c[name] for name in ("user_id", "session_id", "provider", "status", "step")
]


async def insert(connection: AsyncConnection, session: ConnectSession) -> None:
    """A new session. The person must have no live one for that provider."""
    await connection.execute(
        sa.insert(auth_sessions).values(
            session_id=session.session_id,
            user_id=session.user_id,
            provider=session.provider,
            status=session.status,
            method=session.method,
            created_at=session.created_at,
            expires_at=session.expires_at,
        )
    )
    await emit(
        connection, session.user_id, "session", session.session_id,
        provider=session.provider, status=session.status,
    )  # fmt: skip


async def get(
    connection: AsyncConnection, session_id: SessionId, user_id: UserId | None = None
) -> ConnectSession:
    """A session, of that person if one is named. Raises NoSuchSession."""
    query = sa.select(auth_sessions).where(auth_sessions.c.session_id == session_id)
    if user_id is not None:
        query = query.where(auth_sessions.c.user_id == user_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NoSuchSession(f"There is no connect session {session_id}")
    return _session(row)


async def find_live(
    connection: AsyncConnection, user_id: UserId, provider: str
) -> ConnectSession | None:
    """The person's live session for a provider."""
    query = sa.select(auth_sessions).where(
        auth_sessions.c.user_id == user_id, auth_sessions.c.provider == provider, _LIVE
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _session(row)


async def list_live(connection: AsyncConnection) -> list[ConnectSession]:
    """Everybody's live sessions, the oldest first."""
    query = sa.select(auth_sessions).where(_LIVE).order_by(auth_sessions.c.created_at)
    return [_session(row) for row in await connection.execute(query)]


async def list_cancel_requested(connection: AsyncConnection) -> list[SessionId]:
    """Everybody's live sessions whose person wants them cancelled."""
    query = sa.select(auth_sessions.c.session_id).where(
        _LIVE, auth_sessions.c.cancel_requested_at.is_not(None)
    )
    return [SessionId(row.session_id) for row in await connection.execute(query)]


async def list_page(
    connection: AsyncConnection,
    span: PageSpec,
    *,
    user_id: UserId | None = None,
    live: bool = False,
) -> list[ConnectSession]:
    """A span of sessions, the newest first: everybody's or one person's; all or the live ones."""
    query = sa.select(auth_sessions)
    if user_id is not None:
        query = query.where(auth_sessions.c.user_id == user_id)
    if live:
        query = query.where(_LIVE)
    order = (auth_sessions.c.created_at, auth_sessions.c.session_id)
    rows = await connection.execute(keyset.page(query, order, span, newest_first=True))
    return [_session(row) for row in rows]


async def list_using_machine(connection: AsyncConnection, vm_id: VmId) -> list[SessionId]:
    """The sessions that live off a CLI machine: live ones, and those that completed with it."""
    query = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.cli_vm_id == vm_id,
        sa.or_(_LIVE, auth_sessions.c.status == SessionStatus.COMPLETED),
    )
    return [SessionId(row.session_id) for row in await connection.execute(query)]


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Forget sessions that ended before that time, but for those whose CLI machine lives on: they
    tell whose it is."""
    alive = sa.select(vms.c.vm_id).where(vms.c.status.not_in(GONE_STATES))
    old = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.ended_at < before,
        sa.or_(auth_sessions.c.cli_vm_id.is_(None), auth_sessions.c.cli_vm_id.not_in(alive)),
    )
    await connection.execute(sa.delete(session_steps).where(session_steps.c.session_id.in_(old)))
    result = await connection.execute(
        sa.delete(auth_sessions).where(auth_sessions.c.session_id.in_(old))
    )
    return int(result.rowcount)


async def has_completed_with(connection: AsyncConnection, vm_id: VmId) -> bool:
    """Whether a session has completed with a CLI machine."""
    query = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.cli_vm_id == vm_id, auth_sessions.c.status == SessionStatus.COMPLETED
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def count_running(connection: AsyncConnection) -> int:
    """How many sessions neither wait for room, nor for their person, nor have ended."""
    query = sa.select(sa.func.count()).where(_LIVE, auth_sessions.c.status == SessionStatus.RUNNING)
    return int((await connection.execute(query)).scalar_one())


async def list_queued(connection: AsyncConnection) -> list[QueuedSession]:
    """The sessions that wait for room, the oldest first."""
    query = (
        sa.select(
            auth_sessions.c.session_id,
            auth_sessions.c.user_id,
            auth_sessions.c.created_at,
            auth_sessions.c.cancel_requested_at,
            auth_sessions.c.method,
        )
        .where(_LIVE, auth_sessions.c.status == SessionStatus.QUEUED)
        .order_by(auth_sessions.c.created_at, auth_sessions.c.session_id)
    )
    return [
        QueuedSession(
            SessionId(row.session_id),
            UserId(row.user_id),
            row.created_at,
            row.cancel_requested_at is not None,
            CredentialKind(row.method),
        )
        for row in await connection.execute(query)
    ]


async def leave_queue(connection: AsyncConnection, session_id: SessionId) -> bool:
    """Let a session wait for room no longer. Whether it did."""
    query = sa.select(auth_sessions.c.status).where(auth_sessions.c.session_id == session_id, _LIVE)
    status = (await connection.execute(query.with_for_update())).scalar()
    if status != SessionStatus.QUEUED:
        return False
    return await update(connection, session_id, status=SessionStatus.RUNNING)


async def is_using(connection: AsyncConnection, machine: Machine) -> bool:
    """Whether a session that goes on uses a machine, or made it."""
    query = sa.select(auth_sessions.c.session_id).where(
        _LIVE,
        sa.or_(
            auth_sessions.c.cli_vm_id == machine.vm_id,
            auth_sessions.c.session_id == machine.session_id,
        ),
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def update(connection: AsyncConnection, session_id: SessionId, **values: Any) -> bool:
    """Set columns of a live session, and tell its person. Whether it was live."""
    changed = await connection.execute(
        sa.update(auth_sessions)
        .where(auth_sessions.c.session_id == session_id, _LIVE)
        .values(**values)
        .returning(*_EMITTED)
    )
    row = changed.one_or_none()
    if row is not None:
        await _emit(connection, row)
        if "ended_at" in values:
            metrics.sessions_ended.labels(row.provider, row.status).inc()
    return row is not None


async def request_cancel(connection: AsyncConnection, session_id: SessionId, at: datetime) -> bool:
    """Note that the person wants it cancelled; the first wish counts. Whether it was live."""
    kept = sa.func.coalesce(auth_sessions.c.cancel_requested_at, at)
    return await update(connection, session_id, cancel_requested_at=kept)


async def end(
    connection: AsyncConnection,
    session_id: SessionId,
    status: SessionStatus,
    at: datetime,
    problem: tuple[str, str] | None = None,
) -> None:
    """End a session, with the code and words of what went wrong unless it completed."""
    code, words = problem or (None, None)
    await update(connection, session_id, status=status, ended_at=at, error_code=code, error=words)


async def start_step(
    connection: AsyncConnection, session_id: SessionId, step: str, at: datetime
) -> None:
    """Note that a step began; when it runs again, its first beginning counts."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = insert(session_steps).values(session_id=session_id, step=step, started_at=at)
    await connection.execute(new.on_conflict_do_nothing())


async def set_step(
    connection: AsyncConnection, session_id: SessionId, step: str, leaves: Collection[SessionStatus]
) -> None:
    """The session is in this step now, and runs if its status is one that the step leaves."""
    status = auth_sessions.c.status
    runs = sa.case((status.in_(leaves), SessionStatus.RUNNING), else_=status)
    await update(connection, session_id, step=step, status=runs)


async def end_step(
    connection: AsyncConnection, session_id: SessionId, step: str, at: datetime, outcome: str
) -> None:
    """Note how a step ended, and tell the session's person."""
    ended = await connection.execute(
        sa.update(session_steps)
        .where(session_steps.c.session_id == session_id, session_steps.c.step == step)
        .values(ended_at=at, outcome=outcome)
    )
    session = sa.select(*_EMITTED).where(auth_sessions.c.session_id == session_id)
    if ended.rowcount:
        row = (await connection.execute(session)).one()
        await _emit(connection, row, step=step, outcome=outcome)


async def list_steps(connection: AsyncConnection, session_id: SessionId) -> list[SessionStep]:
    """A session's steps in the order they began."""
    query = (
        sa.select(session_steps)
        .where(session_steps.c.session_id == session_id)
        .order_by(session_steps.c.started_at)
    )
    return [
        SessionStep(SessionId(row.session_id), row.step, row.started_at, row.ended_at, row.outcome)
        for row in await connection.execute(query)
    ]


async def _emit(connection: AsyncConnection, row: sa.Row[Any], **more: str) -> None:
    about = {"provider": row.provider, "status": row.status, "step": row.step, **more}
    await emit(connection, UserId(row.user_id), "session", row.session_id, **about)


def _session(row: sa.Row[Any]) -> ConnectSession:
    return ConnectSession(
        session_id=SessionId(row.session_id),
        user_id=UserId(row.user_id),
        provider=row.provider,
        status=SessionStatus(row.status),
        step=row.step,
        oauth_url=row.oauth_url,
        own_browser_url=row.own_browser_url,
        cli_vm_id=None if row.cli_vm_id is None else VmId(row.cli_vm_id),
        error_code=row.error_code,
        error=row.error,
        cancel_requested_at=row.cancel_requested_at,
        created_at=row.created_at,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
        method=CredentialKind(row.method),
    )
