"""Check of VM hosts: collect the findings of each host agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import hosts as rows
from polydev.shared.domain import Finding, HostState, VmHost, now
from polydev.shared.errors import PolydevError
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClients

_LIMIT_S = 15.0
_LOOK = "Start the agent on that host (`polydev up`); its log is logs/hostd.log there"


async def check(
    database: Database, hosts: HostClients, settings: ControllerSettings
) -> Sequence[Finding]:
    """Collect the findings of each host, and report hosts that do not answer."""
    async with database.read() as connection:
        known = await rows.list_all(connection)
    if not known:
        hint = Hint.LIST_HOSTS_OR_DEFAULT.text()
        return [Finding("hosts", False, "There is no VM host", hint)]
    unseen = timedelta(seconds=settings.host_unseen_limit_s)
    answers = await asyncio.gather(*(_one(hosts, host, unseen) for host in known))
    return [
        replace(finding, host_id=host.host_id)
        for host, found in zip(known, answers, strict=True)
        for finding in found
    ]


async def _one(hosts: HostClients, host: VmHost, unseen: timedelta) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(_LIMIT_S):
            client = hosts.client(host.host_id)
            health = await client.health()
            findings = (await client.diagnosis()).findings
    except (PolydevError, TimeoutError) as error:
        return [_silent(host, unseen, error)]
    message = f"Version {health.version}, driver {health.driver} ({health.accelerator})"
    if host.state is HostState.DRAINING:
        message += "; draining, so it gets no new machines"
    return [Finding("host agent", True, message), *findings]


def _silent(host: VmHost, unseen: timedelta, error: Exception) -> Finding:
    why = error.message if isinstance(error, PolydevError) else f"no answer in {_LIMIT_S:g} s"
    if host.seen_at is None:
        return Finding("host agent", False, f"{why}; it never answered", _LOOK)
    if (age := now() - host.seen_at) > unseen:
        message = f"{why}; its last answer was {age.total_seconds():.0f} s ago"
        return Finding("host agent", False, f"{message}, so it gets no machines", _LOOK)
    return Finding("host agent", False, why, _LOOK)
