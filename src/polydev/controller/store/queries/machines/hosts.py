"""Rows of `hosts`: which VM hosts there are, what each offers, and when it last answered."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import GONE_STATES, hosts, vms
from polydev.shared.domain import HostId, HostState, VmHost, now
from polydev.shared.errors import HostInUse, NoSuchHost
from polydev.shared.host_protocol import Health


async def register(connection: AsyncConnection, host_id: HostId, socket: str) -> None:
    """A host that the settings name: a new row, or the path of its socket in the row it has."""
    changed = await connection.execute(
        sa.update(hosts).where(hosts.c.host_id == host_id).values(socket=socket)
    )
    if changed.rowcount:
        return
    await connection.execute(
        sa.insert(hosts).values(
            host_id=host_id,
            socket=socket,
            state=HostState.ACTIVE,
            memory_mib=0,
            vcpus=0,
            max_machines=0,
            disk_free_mib=0,
            driver="",
            accelerator="",
            version="",
            created_at=now(),
        )
    )


async def list_all(connection: AsyncConnection) -> list[VmHost]:
    """All hosts, by name."""
    rows = await connection.execute(sa.select(hosts).order_by(hosts.c.host_id))
    return [_host(row) for row in rows]


async def get(connection: AsyncConnection, host_id: HostId) -> VmHost:
    """One host. Raises NoSuchHost."""
    query = sa.select(hosts).where(hosts.c.host_id == host_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NoSuchHost(f"There is no host {host_id}", hint="POLYDEV_HOSTS names the hosts")
    return _host(row)


async def update_health(
    connection: AsyncConnection, host_id: HostId, health: Health, at: datetime
) -> None:
    """A host has answered, with what it offers."""
    await connection.execute(
        sa.update(hosts)
        .where(hosts.c.host_id == host_id)
        .values(
            memory_mib=health.memory_mib,
            vcpus=health.vcpus,
            max_machines=health.max_machines,
            disk_free_mib=health.disk_free_mib,
            driver=health.driver,
            accelerator=health.accelerator,
            version=health.version,
            seen_at=at,
        )
    )


async def set_state(connection: AsyncConnection, host_id: HostId, state: HostState) -> None:
    """Have a host take machines, or no more. Raises NoSuchHost."""
    changed = await connection.execute(
        sa.update(hosts).where(hosts.c.host_id == host_id).values(state=state)
    )
    if not changed.rowcount:
        await get(connection, host_id)


async def delete(connection: AsyncConnection, host_id: HostId) -> None:
    """Forget a host. Raises: NoSuchHost; HostInUse while it has machines."""
    await get(connection, host_id)
    query = sa.select(sa.func.count()).where(
        vms.c.host_id == host_id, vms.c.status.not_in(GONE_STATES)
    )
    count = (await connection.execute(query)).scalar_one()
    if count:
        raise HostInUse(
            f"The host {host_id} still has {count} machines",
            hint="Set it to draining, and destroy its machines first",
        )
    await connection.execute(sa.delete(hosts).where(hosts.c.host_id == host_id))


def _host(row: sa.Row[Any]) -> VmHost:
    return VmHost(
        host_id=HostId(row.host_id),
        socket=row.socket,
        state=HostState(row.state),
        memory_mib=row.memory_mib,
        vcpus=row.vcpus,
        max_machines=row.max_machines,
        disk_free_mib=row.disk_free_mib,
        driver=row.driver,
        accelerator=row.accelerator,
        version=row.version,
        seen_at=row.seen_at,
        created_at=row.created_at,
    )
