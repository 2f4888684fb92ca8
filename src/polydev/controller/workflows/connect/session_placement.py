"""Placement of a connect session's machines: claims resources for all of them at once.

The user's existing CLI machine is reused in any state; otherwise a new one is created. The browser
machine is placed on the host of the CLI machine if it fits, so the login depends on one host only.
A session with an API key needs no browser machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement import Fleet
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.connect.sessions import QueuedSession
from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import (
    BY_READINESS,
    CredentialKind,
    HostId,
    Machine,
    MachineKind,
    MachineState,
    Resources,
    SessionId,
    UserId,
    VmId,
    vm_id_for,
)
from polydev.shared.errors import LoginFailed, MachineBusy, NoCapacity, PolydevError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason why a session cannot get its machines now."""

    error: PolydevError
    is_permanent: bool = False
    """It can never get them."""
    host_id: HostId | None = None
    """The only possible host, which has the CLI machine's disk."""
    lacks_capacity: bool = True
    """Capacity is missing. Other sessions may not overtake this one then."""


@dataclass(frozen=True, slots=True)
class SessionPlacement:
    """Claims machines for sessions, in the transaction that loaded the fleet."""

    machines: MachineOperations

    async def claim(
        self, connection: AsyncConnection, fleet: Fleet, waiting: QueuedSession
    ) -> Refusal | None:
        """Claim a session's machines. Returns a refusal and changes nothing if impossible."""
        session_id, user_id = waiting.session_id, waiting.user_id
        cli = await find_session_cli_machine(connection, user_id)
        new_cli = self._plan(session_id, user_id, MachineKind.CLI)
        needs_browser = waiting.method is CredentialKind.LOGIN
        browser = self._plan(session_id, user_id, MachineKind.BROWSER) if needs_browser else None
        for machine in (browser, new_cli if cli is None else None):
            if machine is not None and not fleet.can_ever_fit(Resources.for_machine(machine.size)):
                return Refusal(
                    fleet.no_capacity(Resources.for_machine(machine.size)), is_permanent=True
                )
        if cli is not None and cli.status.is_going_to_rest:
            busy = MachineBusy(f"Your CLI machine {cli.vm_id} is {cli.status}")
            return Refusal(busy, lacks_capacity=False)
        if cli is not None:
            refusal = await self._claim_with_cli_machine(connection, fleet, cli, browser)
        elif browser is not None:
            refusal = await self._claim_both(connection, fleet, new_cli, browser)
        else:
            refusal = await self._claim_cli(connection, fleet, new_cli)
        if refusal is None and await sessions.leave_queue(connection, session_id):
            vm_id = (cli or new_cli).vm_id
            await sessions.update(connection, session_id, cli_vm_id=vm_id)
        return refusal

    async def replace_cli_machine(
        self, connection: AsyncConnection, session_id: SessionId, user_id: UserId
    ) -> VmId:
        """Assign another CLI machine to a session. Raises NoCapacity, LoginFailed."""
        fleet = await self.machines.placement.load_fleet(connection)
        machine = await find_session_cli_machine(connection, user_id)
        if machine is None:
            machine = self._plan(session_id, user_id, MachineKind.CLI)
            if await machines.find(connection, machine.vm_id) is not None:
                raise LoginFailed("The CLI machine of this login was lost", hint="Connect again")
            host_id = fleet.choose(Resources.for_machine(machine.size))
            if host_id is None:
                raise fleet.no_capacity(Resources.for_machine(machine.size))
            await machines.insert_if_absent(connection, replace(machine, host_id=host_id))
        await sessions.update(connection, session_id, cli_vm_id=machine.vm_id)
        return machine.vm_id

    async def _claim_both(
        self, connection: AsyncConnection, fleet: Fleet, cli: Machine, browser: Machine
    ) -> Refusal | None:
        """Claim resources for two new machines, preferably on one host."""
        cli_needs, browser_needs = (
            Resources.for_machine(cli.size),
            Resources.for_machine(browser.size),
        )
        pair = fleet.choose_two(cli_needs, browser_needs)
        if pair is None:
            larger = max(cli_needs, browser_needs, key=lambda it: it.memory_mib)
            return Refusal(fleet.no_capacity(larger))
        cli_host, browser_host = pair
        fleet.reserve(cli_host, cli_needs)
        await machines.insert_if_absent(connection, replace(cli, host_id=cli_host))
        await self._add_browser(connection, fleet, browser, browser_host)
        return None

    async def _claim_cli(
        self, connection: AsyncConnection, fleet: Fleet, cli: Machine
    ) -> Refusal | None:
        """Claim resources for a new CLI machine only."""
        needs = Resources.for_machine(cli.size)
        host_id = fleet.choose(needs)
        if host_id is None:
            return Refusal(fleet.no_capacity(needs))
        fleet.reserve(host_id, needs)
        await machines.insert_if_absent(connection, replace(cli, host_id=host_id))
        return None

    async def _claim_with_cli_machine(
        self, connection: AsyncConnection, fleet: Fleet, cli: Machine, browser: Machine | None
    ) -> Refusal | None:
        """Claim resources for a browser machine, if needed, and to start the CLI machine."""
        after = fleet
        if not cli.status.holds_memory:
            needs = Resources.for_machine(cli.size, new=False)
            try:
                host_id = self.machines.placement.require_capacity(fleet, cli, needs)
            except PolydevError as error:
                lacks_capacity = isinstance(error, NoCapacity)
                return Refusal(error, host_id=cli.host_id, lacks_capacity=lacks_capacity)
            after = fleet.with_reserved(host_id, needs)
        browser_host = None
        if browser is not None:
            browser_needs = Resources.for_machine(browser.size)
            browser_host = after.choose(browser_needs, prefer=cli.host_id)
            if browser_host is None:
                return Refusal(after.no_capacity(browser_needs))
        if not cli.status.holds_memory and cli.host_id is not None:
            fleet.reserve(cli.host_id, Resources.for_machine(cli.size, new=False))
            await machines.set_state(connection, cli.vm_id, MachineState.RESUMING)
            if cli.has_saved_memory:
                await hibernation.set_resume_reason(connection, cli.vm_id, "a login")
        if browser is not None and browser_host is not None:
            await self._add_browser(connection, fleet, browser, browser_host)
        return None

    async def _add_browser(
        self, connection: AsyncConnection, fleet: Fleet, browser: Machine, host_id: HostId
    ) -> None:
        fleet.reserve(host_id, Resources.for_machine(browser.size))
        await machines.insert_if_absent(connection, replace(browser, host_id=host_id))

    def _plan(self, session_id: SessionId, user_id: UserId, kind: MachineKind) -> Machine:
        return self.machines.plan(user_id, kind, vm_id_for(session_id, kind), session_id)


async def find_session_cli_machine(connection: AsyncConnection, user_id: UserId) -> Machine | None:
    """Find the user's CLI machine that a session reuses."""
    for state in BY_READINESS:
        found = await machines.find_cli_machine(connection, user_id, state)
        if found is not None:
            return found
    return None
