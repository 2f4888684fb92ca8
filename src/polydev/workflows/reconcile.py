"""The reconciler: looks what fell between rows, workflows and hosts, and puts it right.

`app.py` runs it beside the API, at start and then every half minute. It finishes what a workflow
could not (a host that was away too long), and what a controller that died between a row and its
workflow left. It destroys only what the rows say is nobody's: a machine that no row knows may
belong to another controller, and is `polydev doctor`'s to tell.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta

from polydev.domain import Machine, MachineKind, MachineState, SessionStatus, now
from polydev.errors import Failed, NoSuchSession, PolydevError
from polydev.hostapi import MachineView
from polydev.store import machines, sessions
from polydev.store.database import Database
from polydev.workflows.connect import CONNECT
from polydev.workflows.engine import Engine
from polydev.workflows.machine_requests import CREATE, DESTROY
from polydev.workflows.machines import Machines, set_failed

log = logging.getLogger("polydev.workflows")

_KEEP_JOURNAL = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """One round is `once`; `run` makes them for ever."""

    database: Database
    engine: Engine
    machines: Machines

    async def run(self) -> None:
        """Rounds until cancelled. What goes wrong in one is tried again in the next."""
        while True:
            try:
                await self.once()
            except PolydevError as error:
                log.warning("reconciling: %s", error.line())
            except Exception as error:
                log.error("reconciling failed: %s", type(error).__name__)
            await asyncio.sleep(self.machines.settings.reconcile_period_s)

    async def once(self) -> None:
        """Look at everything once."""
        await self._sessions()
        await self.engine.forget(now() - _KEEP_JOURNAL)
        async with self.database.read() as connection:
            rows = await machines.alive(connection)
        there: dict[str, MachineView] = {}
        for host in self.machines.hosts.every().values():
            there |= {view.vm_id: view for view in await host.machines()}
        for row in rows:
            try:
                await self._machine(row, there.get(row.vm_id))
            except PolydevError as error:
                log.warning("%s cannot be put right now: %s", row.vm_id, error.line())

    async def _sessions(self) -> None:
        """Every live session has a workflow; one whose workflow ended without it is failed."""
        async with self.database.read() as connection:
            live = await sessions.live(connection)
        for session in live:
            if not await self.engine.is_over(CONNECT, session.session_id):
                await self.engine.enqueue(CONNECT, session.session_id)
                continue
            log.error("session %s: its workflow ended without it", session.session_id)
            problem = (Failed.code, "Something unexpected ended the login. Connect again")
            async with self.database.write() as connection:
                await sessions.end(
                    connection, session.session_id, SessionStatus.FAILED, now(), problem
                )

    async def _machine(self, row: Machine, view: MachineView | None) -> None:
        if await self._is_nobodys(row):
            log.warning("%s is nobody's any more: it is destroyed", row.vm_id)
            return await self.machines.take_down(row.vm_id)
        if row.status is MachineState.DESTROYING:
            if await self.engine.is_over(DESTROY, row.vm_id):
                await self.machines.take_down(row.vm_id)
            else:
                await self.engine.enqueue(DESTROY, row.vm_id)
        elif row.status is MachineState.CREATING:
            await self._creating(row)
        elif view is None:
            if row.status is not MachineState.FAILED:
                await self._fail(row, "Its host has lost it. Destroy it and make another")
        elif view.state is not row.status and view.state in _SETTLED:
            async with self.database.write() as connection:
                await machines.set_state(connection, row.vm_id, view.state, view.ip_address)

    async def _is_nobodys(self, row: Machine) -> bool:
        """Whether a session made it, that session has ended, and nothing holds on to it."""
        if row.session_id is None:
            return False
        async with self.database.read() as connection:
            try:
                session = await sessions.get(connection, row.session_id)
            except NoSuchSession:
                return True
            if not session.status.is_end:
                return False
            if row.vm_type is MachineKind.BROWSER:
                return True
            return not await sessions.uses_of(connection, row.vm_id)

    async def _creating(self, row: Machine) -> None:
        """A person's machine whose workflow was never started, or ended without it."""
        if row.session_id is not None:
            return
        if await self.engine.is_over(CREATE, row.vm_id):
            await self._fail(row, "It could not be made. Destroy it and make another")
        else:
            await self.engine.enqueue(CREATE, row.vm_id)

    async def _fail(self, row: Machine, words: str) -> None:
        log.warning("%s: %s", row.vm_id, words)
        async with self.database.write() as connection:
            await set_failed(connection, row.vm_id, Failed(words))


_SETTLED = (MachineState.RUNNING, MachineState.STOPPED, MachineState.FAILED)
