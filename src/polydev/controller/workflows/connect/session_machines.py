"""Machines of a connect session: its CLI machine, reused or new, and its browser machine.

A CLI machine that a session created is destroyed when the last session releases it, unless a
session completed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from polydev.controller.placement.claims import lock_placement
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.workflows.connect.browser_service_client import BrowserService
from polydev.controller.workflows.connect.session_placement import SessionPlacement
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import Machine, MachineKind, MachineState, SessionId, VmId, vm_id_for
from polydev.shared.errors import HostUnreachable, MachineNotReady, Unavailable

_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class SessionMachines:
    """Idempotent steps for a session's machines."""

    database: Database
    machines: MachineOperations

    async def browser_service(self, session_id: SessionId) -> BrowserService:
        """Return a client of the service in the browser machine."""
        vm_id = vm_id_for(session_id, MachineKind.BROWSER)
        machine = await self.machines.find(vm_id)
        host = self.machines.hosts.client(machine.host_id)
        return BrowserService(host, vm_id, self.machines.token(vm_id))

    async def create(self, subject: str) -> None:
        """Bring up the CLI machine and the browser machine concurrently."""
        session_id = SessionId(subject)
        cli = await self._cli_machine(session_id)
        browser = vm_id_for(session_id, MachineKind.BROWSER)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.machines.bring_up(cli))
                group.create_task(self.machines.bring_up(browser))
        except ExceptionGroup as errors:
            # raise an error that is not retried first
            raise min(errors.exceptions, key=lambda it: isinstance(it, Unavailable)) from None

    async def start_cli_machine(self, subject: str) -> None:
        """Bring up the CLI machine, for a session with an API key."""
        await self.machines.bring_up(await self._cli_machine(SessionId(subject)))

    async def wait_for_browser(self, subject: str) -> None:
        """Wait until the browser machine's service answers.

        Raises MachineNotReady, which names the machine, the limit and the console log.
        """
        session_id = SessionId(subject)
        vm_id = vm_id_for(session_id, MachineKind.BROWSER)
        limit_s = self.machines.settings.healthy_limit_s
        why = "no answer"
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    try:
                        if await (await self.browser_service(session_id)).is_healthy():
                            return
                    except HostUnreachable as error:
                        why = error.message
                        await self.recreate_browser(session_id)
                    except Unavailable as error:
                        why = error.message
                    await asyncio.sleep(_PAUSE_S)  # nothing signals that the service listens
        except TimeoutError:
            log = await self._console_log(vm_id)
            raise MachineNotReady(
                f"The browser machine {vm_id} was not ready within {limit_s:g} s: {why}",
                hint=f"Its console log is {log}",
            ) from None

    async def recreate_browser(self, session_id: SessionId) -> None:
        """Recreate the browser machine on another host, if its own is dead."""
        vm_id = vm_id_for(session_id, MachineKind.BROWSER)
        with contextlib.suppress(Unavailable):
            if await self.machines.relocate_from_dead_host(vm_id):
                await self.machines.bring_up(vm_id)

    async def is_browser_lost(self, session_id: SessionId) -> bool:
        """Check whether the host of the browser machine is dead."""
        machine = await self.machines.find(vm_id_for(session_id, MachineKind.BROWSER))
        async with self.database.read() as connection:
            return await self.machines.is_on_dead_host(connection, machine)

    async def destroy_browser(self, subject: str) -> None:
        """Destroy the browser machine."""
        await self.machines.destroy(vm_id_for(SessionId(subject), MachineKind.BROWSER))

    async def release_cli_machine(self, subject: str) -> None:
        """Release the CLI machine. Destroy it if a session created it and none needs it."""
        session_id = SessionId(subject)
        async with self.database.write() as connection:
            await lock_placement(connection)
            session = await sessions.get(connection, session_id)
            vm_id = session.cli_vm_id or vm_id_for(session_id, MachineKind.CLI)
            await sessions.update(connection, session_id, cli_vm_id=None)
            machine = await machines.find(connection, vm_id)
            others = await sessions.list_using_machine(connection, vm_id)
            if machine is None or machine.status is MachineState.DESTROYED:
                return
            is_needed = machine.session_id is None or bool(others)
            if not is_needed:
                await machines.set_state(connection, vm_id, MachineState.DESTROYING)
        if not is_needed:
            await self.machines.destroy(vm_id)
        elif machine.status is MachineState.RESUMING:
            await self._leave_at_rest(machine)

    async def _cli_machine(self, session_id: SessionId) -> VmId:
        """Return the session's CLI machine, or another one if its host has lost it."""
        while True:
            async with self.database.read() as connection:
                session = await sessions.get(connection, session_id)
                claimed = session.cli_vm_id
                machine = None if claimed is None else await machines.find(connection, claimed)
            if machine is not None and await self._is_there(machine):
                return machine.vm_id
            async with self.database.write() as connection:
                if machine is not None:
                    await machines.set_state(connection, machine.vm_id, MachineState.DESTROYED)
                claims = SessionPlacement(self.machines)
                await claims.replace_cli_machine(connection, session_id, session.user_id)

    async def _is_there(self, machine: Machine) -> bool:
        """Check whether the machine is on its host, or will be."""
        if machine.status in (MachineState.CREATING, MachineState.DESTROYED):
            return machine.status is MachineState.CREATING
        try:
            return await self.machines.view_on_host(machine) is not None
        except HostUnreachable:
            await self.machines.relocate_from_dead_host(machine.vm_id)
            raise

    async def _leave_at_rest(self, machine: Machine) -> None:
        """Reset a machine whose start for this session alone was cancelled."""
        view = await self.machines.view_on_host(machine)
        async with self.database.write() as connection:
            if view is None or await sessions.is_using(connection, machine):
                return
            if not view.state.holds_memory:
                before = [MachineState.RESUMING]
                await machines.set_state(connection, machine.vm_id, view.state, instead_of=before)

    async def _console_log(self, vm_id: VmId) -> str:
        try:
            view = await self.machines.view_on_host(await self.machines.find(vm_id))
        except Unavailable:
            return "on its host, which does not answer"
        return view.console_log if view else "gone with the machine"
