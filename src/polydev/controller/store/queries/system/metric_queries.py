"""Count rows for metrics, by closed lists of labels without ids.

A scrape calls it at most once a second. It must stay cheap: grouped counts only.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.queries.machines import capacity, hosts
from polydev.controller.store.tables import (
    GONE_STATES,
    auth_sessions,
    controllers,
    credentials,
    users,
    vms,
)
from polydev.controller.telemetry.metrics import HostCapacity, RowCounts, Series
from polydev.shared.domain import HostState, Resources, SessionStatus, VmHost, now

_MIB = 1024 * 1024
_NO_HOST = "none"


async def count_all(connection: AsyncConnection) -> RowCounts:
    """Count everything in one transaction."""
    at = now()
    machines = await _count_by(
        connection,
        (vms.c.vm_type, vms.c.status, sa.func.coalesce(vms.c.host_id, _NO_HOST)),
        vms.c.status.not_in(GONE_STATES),
    )
    sessions = await _count_by(
        connection,
        (auth_sessions.c.provider, auth_sessions.c.status),
        auth_sessions.c.ended_at.is_(None),
    )
    credential_counts = await _count_by(
        connection, (credentials.c.provider,), credentials.c.revoked_at.is_(None)
    )
    user_count = await connection.scalar(sa.select(sa.func.count()).select_from(users))
    leases = await connection.execute(sa.select(controllers.c.lease_until))
    left_s = [(row.lease_until - at).total_seconds() for row in leases]
    taken = await capacity.get_taken_by_host(connection)
    return RowCounts(
        machines=machines,
        sessions=sessions,
        credentials=credential_counts,
        users=user_count or 0,
        queue_length=int(
            sum(it for (_, status), it in sessions.items() if status == SessionStatus.QUEUED)
        ),
        hosts={
            host.host_id: _host_load(host, taken.get(host.host_id, Resources()), at)
            for host in await hosts.list_all(connection)
        },
        leases_s=[it for it in left_s if it > 0],
    )


async def _count_by(
    connection: AsyncConnection,
    columns: tuple[sa.ColumnElement[str], ...],
    condition: sa.ColumnElement[bool],
) -> Series:
    named = [column.label(f"label_{number}") for number, column in enumerate(columns)]
    query = sa.select(*named, sa.func.count()).where(condition)
    grouped = query.group_by(*(sa.text(it.name) for it in named))
    found = (await connection.execute(grouped)).all()
    return {tuple(map(str, row[:-1])): int(row[-1]) for row in found}


def _host_load(host: VmHost, taken: Resources, at: datetime) -> HostCapacity:
    free = (host.capacity - taken).clamped()
    return HostCapacity(
        memory_bytes=host.memory_mib * _MIB,
        memory_free_bytes=free.memory_mib * _MIB,
        vcpus=host.vcpus,
        vcpus_free=free.vcpus,
        machines=taken.machines,
        disk_free_bytes=host.disk_free_mib * _MIB,
        takes_machines=host.state is HostState.ACTIVE,
        silent_seconds=None if host.seen_at is None else (at - host.seen_at).total_seconds(),
    )
