"""Check of machines: compare rows, hosts and sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import (
    Finding,
    HostId,
    Machine,
    MachineKind,
    MachineState,
    SessionId,
    UserId,
)
from polydev.shared.errors import PolydevError
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClients
from polydev.shared.host_protocol import PURPOSE, HostMachineView

_LIMIT_S = 10.0
_BY_ITSELF = "Polydev corrects this within a minute; if not"


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the database."""

    alive: Sequence[Machine]
    live: frozenset[SessionId]
    """Sessions that have not ended."""


async def check(database: Database, hosts: HostClients, user: UserId | None) -> Sequence[Finding]:
    """Compare rows with hosts, for all machines or those of one user."""
    rows = await _rows(database, user)
    there, silent = await _at_hosts(hosts)
    wrong = [
        *(it for row in rows.alive for it in _one(row, there.get(row.vm_id), silent)),
        *_left_over(rows),
        *_several_cli(rows.alive),
    ]
    if user is None:
        wrong += await _unknown(database, there)
    elif silent and any(row.host_id in silent for row in rows.alive):
        message = "The host of your machines does not answer"
        hint = "Try again in a minute; if it persists, tell your administrator"
        wrong.append(Finding("machines", False, message, hint))
    message = f"{len(rows.alive)} in the database, all confirmed by their hosts"
    return wrong or [Finding("machines", True, message)]


async def _rows(database: Database, user: UserId | None) -> _Rows:
    async with database.read(user) as connection:
        live = await sessions.list_live(connection)
        if user is None:
            alive = await machines.list_alive(connection)
        else:
            alive = await machines.list_for_user(connection, user)
    return _Rows(alive, frozenset(session.session_id for session in live))


async def _at_hosts(hosts: HostClients) -> tuple[Mapping[str, HostMachineView], frozenset[HostId]]:
    """List the machines of all hosts, and the hosts that do not answer."""

    async def ask(host_id: HostId) -> Sequence[HostMachineView] | None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await hosts.client(host_id).machines()
        except (PolydevError, TimeoutError):
            return None

    names = list(hosts.clients())
    answers = await asyncio.gather(*(ask(name) for name in names))
    silent = frozenset(name for name, seen in zip(names, answers, strict=True) if seen is None)
    return {view.vm_id: view for seen in answers for view in seen or ()}, silent


def _one(
    row: Machine, view: HostMachineView | None, silent: frozenset[HostId]
) -> Iterator[Finding]:
    vm_id = row.vm_id
    if row.host_id in silent or row.host_id is None or not row.status.is_settled:
        return
    recreate = f"{_BY_ITSELF}: polydev machine destroy {vm_id}, then create another"
    if view is None:
        if row.status is not MachineState.FAILED:
            message = f"Machine {vm_id} is {row.status} in the database, but its host has lost it"
            yield Finding("machines", False, message, recreate, vm_id)
        return
    if view.state.is_settled and view.state is not row.status:
        message = f"Machine {vm_id} is {row.status} in the database, and {view.state} on its host"
        yield Finding("machines", False, message, recreate, vm_id)
    elif view.ip_address and row.ip_address and view.ip_address != row.ip_address:
        message = f"Pages show {row.ip_address} for machine {vm_id}, but it has {view.ip_address}"
        yield Finding("machines", False, message, recreate, vm_id)
    if view.machine_kind is not row.vm_type:
        message = (
            f"Pages show {vm_id} as a {row.vm_type} machine; it is a {view.machine_kind} machine"
        )
        hint = Hint.RECREATE_MACHINE.text(vm_id=vm_id)
        yield Finding("machines", False, message, hint, vm_id)


def _left_over(rows: _Rows) -> Iterator[Finding]:
    """Find browser machines of ended sessions."""
    for row in rows.alive:
        is_over = row.session_id is not None and row.session_id not in rows.live
        if row.vm_type is MachineKind.BROWSER and is_over and row.status.is_settled:
            yield Finding(
                "machines",
                False,
                f"Browser machine {row.vm_id} is left over from ended session {row.session_id}",
                f"{_BY_ITSELF}: polydev machine destroy {row.vm_id}",
                row.vm_id,
            )


def _several_cli(alive: Sequence[Machine]) -> Iterator[Finding]:
    """Find users with several running CLI machines: pages and logins use only one."""
    by_user: dict[UserId, list[Machine]] = {}
    for row in alive:
        if row.vm_type is MachineKind.CLI and row.status is MachineState.RUNNING:
            by_user.setdefault(row.user_id, []).append(row)
    for user, (shown, *others) in by_user.items():
        if others:
            more = ", ".join(row.vm_id for row in others)
            yield Finding(
                "machines",
                False,
                f"{user} has several CLI machines: pages and logins use {shown.vm_id}, not {more}",
                "Destroy unused ones: polydev machine destroy <id>",
                shown.vm_id,
            )


async def _unknown(database: Database, there: Mapping[str, HostMachineView]) -> Sequence[Finding]:
    """Find machines without a row, except a host's internal ones.

    The rows are read after the hosts, since a new machine gets its row first.
    """
    async with database.read() as connection:
        known = {str(row.vm_id) for row in await machines.list_alive(connection)}
    return [
        Finding(
            "orphans",
            False,
            f"Machine {vm_id} is on its host, but not in the database",
            "It may belong to another Polydev. If not, it is an orphan of this one: restart "
            "Polydev, or inspect it with `polydev machine console`",
            vm_id,
        )
        for vm_id in sorted(there.keys() - known)
        if PURPOSE not in there[vm_id].labels
    ]
