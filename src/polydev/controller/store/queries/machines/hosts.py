"""Queries of `hosts`: VM hosts, their capacity and last contact."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import GONE_STATES, hosts, vms
from polydev.shared.domain import HostId, HostState, VmHost, now
from polydev.shared.errors import HostInUse, NoSuchHost
from polydev.shared.hints import Hint
from polydev.shared.host_protocol import Health


async def register(connection: AsyncConnection, host_id: HostId, socket: str) -> None:
    """Insert a host from the settings, or update its socket."""
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
    """List all hosts by name."""
    rows = await connection.execute(sa.select(hosts).order_by(hosts.c.host_id))
    return [_host(row) for row in rows]


async def get(connection: AsyncConnection, host_id: HostId) -> VmHost:
    """Return a host. Raises NoSuchHost."""
    query = sa.select(hosts).where(hosts.c.host_id == host_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NoSuchHost(f"There is no host {host_id}", hint=Hint.LIST_HOSTS.text())
    return _host(row)


async def update_health(
    connection: AsyncConnection, host_id: HostId, health: Health, at: datetime
) -> None:
    """Record a host's answer with its capacity."""
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
    """Set a host's state. Raises NoSuchHost."""
    changed = await connection.execute(
        sa.update(hosts).where(hosts.c.host_id == host_id).values(state=state)
    )
    if not changed.rowcount:
        await get(connection, host_id)


async def delete(connection: AsyncConnection, host_id: HostId) -> None:
    """Delete a host. Raises: NoSuchHost; HostInUse while it has machines."""
    await get(connection, host_id)
    query = sa.select(sa.func.count()).where(
        vms.c.host_id == host_id, vms.c.status.not_in(GONE_STATES)
    )
    count = (await connection.execute(query)).scalar_one()
    if count:
        raise HostInUse(
            f"The host {host_id} still has {count} machines",
            hint="Drain it and destroy its machines first",
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
