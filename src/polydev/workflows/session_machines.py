"""The machines of a connect session: the CLI machine that it takes or makes, and its browser
machine.

The connect workflow's steps use it. A CLI machine that sessions share goes when the last of them
has let go of it, and only if a session made it; one that a session completed with stays.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from polydev.domain import (
    Machine,
    MachineKind,
    MachineState,
    SessionId,
    VmId,
    vm_id_for,
)
from polydev.errors import LoginFailed, MachineNotReady, Unavailable
from polydev.store import machines, sessions
from polydev.store.database import Database
from polydev.workflows.login import BrowserService
from polydev.workflows.machines import Machines

_PAUSE_S = 0.25
_USABLE = (
    MachineState.RUNNING,
    MachineState.CREATING,
    MachineState.STOPPED,
    MachineState.FAILED,
)


@dataclass(frozen=True, slots=True)
class SessionMachines:
    """What a session does with machines, as idempotent steps."""

    database: Database
    machines: Machines

    def browser_service(self, session_id: SessionId) -> BrowserService:
        """The service in the session's browser machine."""
        vm_id = vm_id_for(session_id, MachineKind.BROWSER)
        return BrowserService(self.machines.host, vm_id, self.machines.token(vm_id))

    async def create(self, subject: str) -> None:
        """Take or make the CLI machine and make the browser machine, side by side."""
        session_id = SessionId(subject)
        cli = await self._claim_cli_machine(session_id)
        browser = await self._plan_browser_machine(session_id)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.machines.bring_up(cli))
                group.create_task(self.machines.bring_up(browser))
        except ExceptionGroup as errors:
            # What cannot be tried again decides.
            raise min(errors.exceptions, key=lambda it: isinstance(it, Unavailable)) from None

    async def browser_ready(self, subject: str) -> None:
        """Return when the browser machine's service answers.

        Raises: MachineNotReady, which names the machine, the limit and the console log.
        """
        service = self.browser_service(SessionId(subject))
        limit_s = self.machines.settings.healthy_limit_s
        why = "it did not answer"
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    try:
                        if await service.is_healthy():
                            return
                    except Unavailable as error:
                        why = error.message
                    await asyncio.sleep(_PAUSE_S)  # nothing tells when the service listens
        except TimeoutError:
            view = await self.machines.at_host(service.vm_id)
            log = view.console_log if view else "gone with the machine"
            raise MachineNotReady(
                f"The browser machine {service.vm_id} was not ready within {limit_s:g} s: {why}",
                hint=f"Its console log is {log}",
            ) from None

    async def destroy_browser(self, subject: str) -> None:
        """The browser machine goes, whatever happened."""
        await self.machines.take_down(vm_id_for(SessionId(subject), MachineKind.BROWSER))

    async def give_back_cli_machine(self, subject: str) -> None:
        """Let go of the CLI machine; destroy it if it was made for a session and none needs it."""
        session_id = SessionId(subject)
        async with self.database.write() as connection:
            session = await sessions.get(connection, session_id)
            vm_id = session.cli_vm_id or vm_id_for(session_id, MachineKind.CLI)
            await sessions.change(connection, session_id, cli_vm_id=None)
            machine = await machines.find(connection, vm_id)
            others = await sessions.uses_of(connection, vm_id)
            if machine is None or machine.session_id is None or others:
                return
            await machines.set_state(connection, vm_id, MachineState.DESTROYING)
        await self.machines.take_down(vm_id)

    async def _claim_cli_machine(self, session_id: SessionId) -> VmId:
        """The session's CLI machine: its own claim, the person's machine, or a new row."""
        while True:
            machine = await self._claim(session_id)
            if machine.status is MachineState.CREATING:
                return machine.vm_id
            if await self.machines.at_host(machine.vm_id) is not None:
                return machine.vm_id
            async with self.database.write() as connection:  # its host has lost it: claim another
                await machines.set_state(connection, machine.vm_id, MachineState.DESTROYED)

    async def _claim(self, session_id: SessionId) -> Machine:
        async with self.database.write() as connection:
            session = await sessions.get(connection, session_id)
            if session.cli_vm_id is not None:
                claimed = await machines.find(connection, session.cli_vm_id)
                if claimed is not None and claimed.status in _USABLE:
                    return claimed
            found = [await machines.cli_of(connection, session.user_id, state) for state in _USABLE]
            machine = next((it for it in found if it is not None), None)
            if machine is None:
                vm_id = vm_id_for(session_id, MachineKind.CLI)
                machine = self.machines.plan(session.user_id, MachineKind.CLI, vm_id, session_id)
                if await machines.find(connection, vm_id) is not None:
                    raise LoginFailed(
                        "The CLI machine that was made for this login is gone",
                        hint="Connect again",
                    )
                await machines.add_if_absent(connection, machine)
            await sessions.change(connection, session_id, cli_vm_id=machine.vm_id)
            return machine

    async def _plan_browser_machine(self, session_id: SessionId) -> VmId:
        vm_id = vm_id_for(session_id, MachineKind.BROWSER)
        async with self.database.write() as connection:
            session = await sessions.get(connection, session_id)
            row = self.machines.plan(session.user_id, MachineKind.BROWSER, vm_id, session_id)
            await machines.add_if_absent(connection, row)
        return vm_id
