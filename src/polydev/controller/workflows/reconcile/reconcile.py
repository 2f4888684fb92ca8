"""The reconciler: corrects differences between rows, workflows and hosts.

It runs at start and every `reconcile_period_s`, on the oldest live controller only. It completes
what a workflow gave up on (a host that was unreachable for too long), and what a controller left
that died between a row and its workflow. `orphans.py` removes machines without a row. The audit log
explains every change. The reconciler may be interrupted anywhere, and two may run for a moment, so
it checks everything again right before it changes it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement.claims import lock_placement
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit, controllers
from polydev.controller.workflows.connect.connect import CONNECT, CONNECT_BY_KEY, workflow_for
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.machines.machine_commands import (
    CREATE,
    DESTROY,
    HIBERNATE,
    RESUME,
    START,
    STOP,
    MachineCommands,
    bring_up_workflow,
    workflow_subject,
)
from polydev.controller.workflows.machines.machine_operations import (
    MachineOperations,
    resume_values,
    set_failed,
)
from polydev.controller.workflows.reconcile.orphans import OrphanCleanup, entry
from polydev.shared.domain import (
    HostId,
    Machine,
    MachineKind,
    MachineState,
    SessionStatus,
    credential_id_for,
    now,
)
from polydev.shared.errors import Failed, HostUnreachable, NoSuchSession, PolydevError
from polydev.shared.host_protocol import HostMachineView

log = logging.getLogger("polydev.controller.workflows")

_KEEP_JOURNAL = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Reconciles periodically."""

    database: Database
    engine: Engine
    machines: MachineOperations
    commands: MachineCommands

    async def run(self) -> None:
        """Reconcile until cancelled. Errors are retried next time."""
        while True:
            try:
                if await self._is_its_turn():
                    await self.run_once()
            except PolydevError as error:
                log.warning("cannot reconcile: %s", error.line())
            except Exception:
                log.exception("reconciling failed")
            await asyncio.sleep(self.machines.settings.reconcile_period_s)

    async def run_once(self) -> None:
        """Reconcile once. Hosts that do not answer are skipped."""
        await self._sessions()
        await self.engine.prune(now() - _KEEP_JOURNAL)
        orphans = OrphanCleanup(self.database, self.machines)
        # Hosts first: a row is created before its machine, and deleted after it.
        there = await orphans.list_all()
        async with self.database.read() as connection:
            rows = await machines.list_alive(connection)
        for row in rows:
            try:
                if row.host_id is None or row.host_id in there:
                    await self._machine(row, _view_of(row, there))
                else:
                    await self._settle_absent(row)
            except PolydevError as error:
                log.warning("cannot reconcile %s now: %s", row.vm_id, error.line())
        await orphans.remove(there)

    async def _is_its_turn(self) -> bool:
        async with self.database.read() as connection:
            eldest = await controllers.find_oldest(connection)
        return eldest in (None, self.engine.executor_id)

    async def _sessions(self) -> None:
        """Restart missing workflows of sessions. Fail sessions whose workflow has ended."""
        async with self.database.read() as connection:
            live = await sessions.list_live(connection)
        active = set[str]()
        for workflow in (CONNECT, CONNECT_BY_KEY) if live else ():
            active |= await self.engine.list_active(workflow)
        for session in live:
            if session.session_id in active:
                continue
            workflow = workflow_for(session)
            if not await self.engine.has_ended(workflow, session.session_id):
                await self.engine.enqueue(workflow, session.session_id)
                continue
            log.error("session %s: its workflow ended, but the session did not", session.session_id)
            problem = (Failed.code, "The login ended unexpectedly. Connect again")
            async with self.database.write() as connection:
                if (await sessions.get(connection, session.session_id)).status.is_end:
                    continue
                await sessions.end(
                    connection, session.session_id, SessionStatus.FAILED, now(), problem
                )
                await credentials.delete_undelivered(
                    connection, credential_id_for(session.session_id)
                )
                why = "its workflow had ended, but the session had not"
                done = entry("session.fail", session.session_id, session.user_id, why)
                await audit.record(connection, done)

    async def _machine(self, row: Machine, view: HostMachineView | None) -> None:
        """Reconcile a machine whose host answers."""
        if await self._mark_if_unused(row):
            return await self.machines.destroy(row.vm_id)
        match row.status:
            case MachineState.DESTROYING:
                await self._destroying(row)
            case MachineState.CREATING:
                await self._creating(row)
            case MachineState.STOPPING:
                await self._continue_work(row, view, STOP)
            case MachineState.HIBERNATING:
                await self._continue_work(row, view, HIBERNATE)
            case MachineState.RESUMING:
                await self._continue_work(row, view, bring_up_workflow(row))
            case _:
                await self._compare(row, view)

    async def _settle_absent(self, row: Machine) -> None:
        """Mark a machine without users for destruction. Its host does not answer."""
        if row.status is not MachineState.DESTROYING and await self._mark_if_unused(row):
            log.info("%s will be destroyed when host %s is back", row.vm_id, row.host_id)

    async def _mark_if_unused(self, row: Machine) -> bool:
        """Set a machine to `destroying` if its session ended and it is unused."""
        if row.session_id is None:
            return False
        async with self.database.write() as connection:
            await lock_placement(connection)
            why = await _why_unused(connection, row)
            if why and row.status is not MachineState.DESTROYING:
                log.warning("%s has no user any more: %s", row.vm_id, why)
                await machines.set_state(connection, row.vm_id, MachineState.DESTROYING)
                await audit.record(
                    connection, entry("machine.destroy", row.vm_id, row.user_id, why)
                )
        return bool(why)

    async def _destroying(self, row: Machine) -> None:
        """Destroy a machine whose workflow never started or gave up."""
        if await self.commands.has_ended(DESTROY, row):
            await self.machines.destroy(row.vm_id)
        else:
            await self.commands.begin(DESTROY, row)

    async def _creating(self, row: Machine) -> None:
        """Restart a creation whose workflow never started, or fail the machine."""
        if row.session_id is not None:
            return
        if await self.commands.has_ended(CREATE, row):
            await self._fail(row, "It could not be created. Destroy it and create another")
        else:
            await self.commands.begin(CREATE, row)

    async def _continue_work(self, row: Machine, view: HostMachineView | None, name: str) -> None:
        """Restart a machine's workflow, or take over the host's state if it has ended.

        Machines that a login starts are left to the login.
        """
        async with self.database.read() as connection:
            if await sessions.is_using(connection, row):
                return
        if not await self.commands.has_ended(name, row):
            await self.commands.begin(name, row)
        else:
            await self._compare(row, view)

    async def _compare(self, row: Machine, view: HostMachineView | None) -> None:
        """Compare a settled machine with its host."""
        if view is None:
            if row.status is MachineState.FAILED or await self._is_worked_on(row):
                return
            if not await self._is_there(row):
                await self._fail(row, "Its host has lost it. Destroy it and create another")
        elif view.state is MachineState.STOPPING and row.status is not MachineState.STOPPING:
            await self.machines.stop(row.vm_id)  # complete an interrupted stop
        elif view.state.is_settled and view.state is not row.status:
            await self._adopt_host_state(row, view)

    async def _adopt_host_state(self, row: Machine, view: HostMachineView) -> None:
        extra_columns: dict[str, Any] = resume_values(row, view)
        if view.state is MachineState.HIBERNATED:
            extra_columns = {"memory_on_disk_bytes": view.memory_on_disk_bytes}
        async with self.database.write() as connection:
            await lock_placement(connection)
            changed = await machines.set_state(
                connection,
                row.vm_id,
                view.state,
                view.ip_address,
                instead_of=[row.status],
                extra_columns=extra_columns,
            )
            if changed:
                why = f"reported by its host; its row was {row.status}"
                done = entry(f"machine.{view.state}", row.vm_id, row.user_id, why)
                await audit.record(connection, done)

    async def _is_worked_on(self, row: Machine) -> bool:
        """Check whether a workflow still creates or starts the machine.

        An undo removes the machine from its host before it updates the row.
        """
        for name in (CREATE, START, RESUME):
            if workflow_subject(name, row) in await self.engine.list_active(name):
                return True
        return False

    async def _is_there(self, row: Machine) -> bool:
        """Check whether the machine is on its host by now. True if the host does not answer."""
        try:
            return await self.machines.view_on_host(row) is not None
        except HostUnreachable:
            return True

    async def _fail(self, row: Machine, reason: str) -> None:
        log.warning("%s: %s", row.vm_id, reason)
        async with self.database.write() as connection:
            fresh = await machines.find(connection, row.vm_id)
            if fresh is None or (fresh.status, fresh.attempt) != (row.status, row.attempt):
                return
            await set_failed(connection, row.vm_id, Failed(reason))
            await audit.record(connection, entry("machine.fail", row.vm_id, row.user_id, reason))


async def _why_unused(connection: AsyncConnection, row: Machine) -> str:
    """Return why a session's machine has no user. Empty if it has one."""
    if row.session_id is None:
        return ""
    if row.vm_type is MachineKind.CLI and await sessions.list_using_machine(connection, row.vm_id):
        return ""
    try:
        session = await sessions.get(connection, row.session_id)
    except NoSuchSession:
        return "the login that created it does not exist"
    return f"the login that created it is {session.status}" if session.status.is_end else ""


def _view_of(
    row: Machine, there: dict[HostId, dict[str, HostMachineView]]
) -> HostMachineView | None:
    return None if row.host_id is None else there[row.host_id].get(row.vm_id)
