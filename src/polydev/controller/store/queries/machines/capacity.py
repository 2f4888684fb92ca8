"""Sum up what machines use of hosts, and users of their quotas.

A machine takes memory in states that hold memory, and an address from creation to destruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import GONE_STATES, auth_sessions, vms
from polydev.shared.domain import (
    HostId,
    MachineKind,
    MachineState,
    Resources,
    SessionStatus,
    Usage,
    UserId,
)

_ALIVE = vms.c.status.not_in(GONE_STATES)
_HOLDS = vms.c.status.in_([state for state in MachineState if state.holds_memory])


def _sum(column: sa.Column[int]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((_HOLDS, column), else_=0)), 0)


async def get_taken_by_host(connection: AsyncConnection) -> dict[HostId, Resources]:
    """Return what machines take of each host."""
    query = (
        sa.select(
            vms.c.host_id,
            _sum(vms.c.memory_mib).label("memory_mib"),
            _sum(vms.c.vcpus).label("vcpus"),
            sa.func.count().label("machines"),
        )
        .where(_ALIVE, vms.c.host_id.is_not(None))
        .group_by(vms.c.host_id)
    )
    return {
        HostId(row.host_id): Resources(int(row.memory_mib), int(row.vcpus), int(row.machines))
        for row in await connection.execute(query)
    }


async def count_running_by_user(connection: AsyncConnection) -> dict[UserId, int]:
    """Count machines that hold memory, per user with any."""
    query = (
        sa.select(vms.c.user_id, sa.func.count().label("machines"))
        .where(_HOLDS)
        .group_by("user_id")
    )
    return {UserId(row.user_id): int(row.machines) for row in await connection.execute(query)}


@dataclass(frozen=True, slots=True)
class UserUsage:
    """A user's usage, and what their queued sessions can share."""

    usage: Usage
    waiting: int
    """Queued sessions, which have no machines yet."""
    has_cli: bool
    has_running_cli: bool


async def get_user_usage(connection: AsyncConnection, user_id: UserId) -> UserUsage:
    """Return a user's usage. A session's browser machine counts only its memory."""
    is_cli = vms.c.vm_type == MachineKind.CLI
    own = sa.or_(is_cli, vms.c.session_id.is_(None))
    of_machines = sa.select(
        sa.func.count().filter(own).label("machines"),
        _sum(vms.c.memory_mib).label("memory_mib"),
        sa.func.count().filter(is_cli).label("cli"),
        sa.func.count().filter(sa.and_(is_cli, _HOLDS)).label("running_cli"),
    ).where(vms.c.user_id == user_id, _ALIVE)
    is_queued = auth_sessions.c.status == SessionStatus.QUEUED
    of_sessions = sa.select(
        sa.func.count().label("live"), sa.func.count().filter(is_queued).label("queued")
    ).where(auth_sessions.c.user_id == user_id, auth_sessions.c.ended_at.is_(None))
    has = (await connection.execute(of_machines)).one()
    sessions = (await connection.execute(of_sessions)).one()
    return UserUsage(
        Usage(int(has.machines), int(has.memory_mib), int(sessions.live)),
        waiting=int(sessions.queued),
        has_cli=bool(has.cli),
        has_running_cli=bool(has.running_cli),
    )
