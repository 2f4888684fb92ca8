"""Deletion of an account with all of its resources.

The request marks the user's row, which blocks all sign-ins as that user. The workflow deletes
resources elsewhere first and the rows last, so an interrupted deletion can always continue.

    cancel-sessions    cancel all connect sessions, and wait until their workflows have undone them
    destroy-machines   destroy machines on all hosts, with their disks and archived logs
    erase-person       delete all rows in one transaction, if no new resources appeared

Every step may run twice; none is undone. `resume` continues after a time limit, such as when a host
is unreachable.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from functools import partial

from polydev.controller.access import ADMINISTRATOR, Caller
from polydev.controller.access.email_addresses import hash_address
from polydev.controller.store.engine import locks
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import user_deletion, users
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.log_only_observer import LogOnlyObserver
from polydev.controller.workflows.engine.saga import OnPoint, Saga, Step
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import Machine, MachineState, StepName, User, UserId, now
from polydev.shared.errors import (
    HostUnreachable,
    MachineBusy,
    NoSuchUser,
    NotAllowed,
    PolydevError,
)
from polydev.shared.host_protocol import ForgetMachine

log = logging.getLogger("polydev.controller.workflows")

DELETE = "delete-person"

_SESSIONS_S = 120.0
_ERASE_S = 30.0
_FORGET_S = 30.0


@dataclass(frozen=True, slots=True)
class AccountDeletion:
    """Deletes accounts: requests and the workflow."""

    database: Database
    machines: MachineOperations
    engine: Engine
    on_point: OnPoint = lambda _step, _point: None

    def register(self) -> None:
        """Register the workflow with the engine, before its start."""
        self.engine.register(DELETE, partial(self.saga().run, self.engine))

    def saga(self) -> Saga:
        """Build the table of steps."""
        destroy_s = 2 * self.machines.settings.destroy_limit_s
        steps = [
            Step(StepName.CANCEL_SESSIONS, self._cancel_sessions, _SESSIONS_S + destroy_s),
            Step(StepName.DESTROY_MACHINES, self._destroy_machines, destroy_s),
            Step(StepName.ERASE_USER, self._erase, _ERASE_S),
        ]
        return Saga(DELETE, [], steps, LogOnlyObserver(), _ERASE_S, self.on_point)

    async def request(self, caller: Caller, user_id: UserId) -> User:
        """Start an account's deletion, and block its sign-ins.

        Raises: NoSuchUser; NotAllowed for the local administrator.
        """
        if user_id == ADMINISTRATOR:
            raise NotAllowed(
                "The local administrator cannot be deleted",
                hint="Delete the machines and credentials instead",
            )
        async with self.database.write() as connection:
            await locks.acquire(connection, "person", user_id)
            user = await users.find(connection, user_id)
            if user is None:
                raise NoSuchUser(f"There is no user {user_id}")
            if user.deleting_at is None:
                user = replace(user, deleting_at=now())
                await user_deletion.mark_deleting(connection, user_id, user.deleting_at or now())
                await audit.record(
                    connection, caller.audit_entry("person.delete", user_id, user_id)
                )
        await self.engine.enqueue(DELETE, user_id)
        return user

    async def restart_lost(self) -> None:
        """Continue deletions whose workflow never started, or ended too early."""
        async with self.database.read() as connection:
            leaving = await user_deletion.list_deleting(connection)
        for user in leaving:
            if not await self.engine.has_ended(DELETE, user.user_id):
                await self.engine.enqueue(DELETE, user.user_id)
                continue
            try:
                for step in (self._cancel_sessions, self._destroy_machines, self._erase):
                    await step(user.user_id)
            except PolydevError as error:
                log.warning("cannot delete %s yet: %s", user.user_id, error.line())

    # -- the steps -------------------------------------------------------------------------------

    async def _cancel_sessions(self, subject: str) -> None:
        async with self.database.write() as connection:
            live = [it for it in await sessions.list_live(connection) if it.user_id == subject]
            for session in live:
                await sessions.request_cancel(connection, session.session_id, now())
        if live:
            raise MachineBusy(f"{len(live)} logins are still being cancelled")

    async def _destroy_machines(self, subject: str) -> None:
        async with self.database.read() as connection:
            theirs = await machines.list_ever_for_user(connection, UserId(subject))
        for machine in theirs:
            if machine.status is not MachineState.DESTROYED:
                await self.machines.destroy(machine.vm_id)
            await self._forget(machine)

    async def _forget(self, machine: Machine) -> None:
        """Delete the machine's archived logs on its host, if it had one."""
        if machine.host_id is None or machine.host_id not in self.machines.hosts.clients():
            return
        host = self.machines.hosts.client(machine.host_id)
        operation_id = f"forget-{machine.vm_id}-{uuid.uuid4().hex[:12]}"
        await host.run(operation_id, ForgetMachine(vm_id=machine.vm_id), _FORGET_S)

    async def _erase(self, subject: str) -> None:
        async with self.database.write() as connection:
            user = await users.find(connection, UserId(subject))
            if user is None:
                return
            if not await user_deletion.is_ready_to_delete(connection, user.user_id):
                raise HostUnreachable("Some resources of the user still exist")
            await user_deletion.delete_user(
                connection, user, (user.user_id, hash_address(user.email))
            )
