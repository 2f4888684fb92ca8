"""Queries of `auth_sessions` and `session_steps`: connect sessions and their steps.

An ended session never changes: every update here skips it. A unique index allows one live session
per user and provider.
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
    """A session that waits for capacity."""

    session_id: SessionId
    user_id: UserId
    created_at: datetime
    is_cancelled: bool
    method: CredentialKind = CredentialKind.LOGIN


_EMITTED = [
    auth_sessions.c[name] for name in ("user_id", "session_id", "provider", "status", "step")
]


async def insert(connection: AsyncConnection, session: ConnectSession) -> None:
    """Insert a session.

    The user must have no live one for the provider.
    """
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
    """Return a session, of a user if one is given. Raises NoSuchSession."""
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
    """Return a user's live session for a provider."""
    query = sa.select(auth_sessions).where(
        auth_sessions.c.user_id == user_id, auth_sessions.c.provider == provider, _LIVE
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _session(row)


async def list_live(connection: AsyncConnection) -> list[ConnectSession]:
    """List live sessions of all users, oldest first."""
    query = sa.select(auth_sessions).where(_LIVE).order_by(auth_sessions.c.created_at)
    return [_session(row) for row in await connection.execute(query)]


async def list_cancel_requested(connection: AsyncConnection) -> list[SessionId]:
    """List live sessions whose cancellation is requested."""
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
    """List a page of sessions, newest first.

    With `user_id`, only of that user; with `live`, only live ones.
    """
    query = sa.select(auth_sessions)
    if user_id is not None:
        query = query.where(auth_sessions.c.user_id == user_id)
    if live:
        query = query.where(_LIVE)
    order = (auth_sessions.c.created_at, auth_sessions.c.session_id)
    rows = await connection.execute(keyset.page(query, order, span, newest_first=True))
    return [_session(row) for row in rows]


async def list_using_machine(connection: AsyncConnection, vm_id: VmId) -> list[SessionId]:
    """List live and completed sessions that use a CLI machine."""
    query = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.cli_vm_id == vm_id,
        sa.or_(_LIVE, auth_sessions.c.status == SessionStatus.COMPLETED),
    )
    return [SessionId(row.session_id) for row in await connection.execute(query)]


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Delete sessions that ended before a time; return their number.

    Sessions whose CLI machine still exists stay: they belong to it.
    """
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
    """Check for a session that completed with a CLI machine."""
    query = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.cli_vm_id == vm_id, auth_sessions.c.status == SessionStatus.COMPLETED
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def count_running(connection: AsyncConnection) -> int:
    """Count running sessions: not queued, not waiting for the user, not ended."""
    query = sa.select(sa.func.count()).where(_LIVE, auth_sessions.c.status == SessionStatus.RUNNING)
    return int((await connection.execute(query)).scalar_one())


async def list_queued(connection: AsyncConnection) -> list[QueuedSession]:
    """List queued sessions, oldest first."""
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
    """Move a queued session to running; return whether it was queued."""
    query = sa.select(auth_sessions.c.status).where(auth_sessions.c.session_id == session_id, _LIVE)
    status = (await connection.execute(query.with_for_update())).scalar()
    if status != SessionStatus.QUEUED:
        return False
    return await update(connection, session_id, status=SessionStatus.RUNNING)


async def is_using(connection: AsyncConnection, machine: Machine) -> bool:
    """Check for a live session that uses a machine or created it."""
    query = sa.select(auth_sessions.c.session_id).where(
        _LIVE,
        sa.or_(
            auth_sessions.c.cli_vm_id == machine.vm_id,
            auth_sessions.c.session_id == machine.session_id,
        ),
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def update(connection: AsyncConnection, session_id: SessionId, **values: Any) -> bool:
    """Update a live session and emit an event.

    Return whether it was live.
    """
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
    """Record a cancellation request; the first one counts.

    Return whether it was live.
    """
    requested_at = sa.func.coalesce(auth_sessions.c.cancel_requested_at, at)
    return await update(connection, session_id, cancel_requested_at=requested_at)


async def end(
    connection: AsyncConnection,
    session_id: SessionId,
    status: SessionStatus,
    at: datetime,
    problem: tuple[str, str] | None = None,
) -> None:
    """End a session, with error code and message unless it completed."""
    code, message = problem or (None, None)
    await update(connection, session_id, status=status, ended_at=at, error_code=code, error=message)


async def start_step(
    connection: AsyncConnection, session_id: SessionId, step: str, at: datetime
) -> None:
    """Record the start of a step; the first start counts."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = insert(session_steps).values(session_id=session_id, step=step, started_at=at)
    await connection.execute(new.on_conflict_do_nothing())


async def set_step(
    connection: AsyncConnection, session_id: SessionId, step: str, leaves: Collection[SessionStatus]
) -> None:
    """Set the current step.

    The session runs if its status is in `leaves`.
    """
    status = auth_sessions.c.status
    runs = sa.case((status.in_(leaves), SessionStatus.RUNNING), else_=status)
    await update(connection, session_id, step=step, status=runs)


async def end_step(
    connection: AsyncConnection, session_id: SessionId, step: str, at: datetime, outcome: str
) -> None:
    """Record the end of a step and emit an event."""
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
    """List a session's steps, oldest first."""
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
