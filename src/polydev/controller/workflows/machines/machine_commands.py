"""What people ask of machines: create, destroy, stop, start, sleep, wake; and the workflows that do
it.

The API asks `MachineRequests`; each wish is a change of the machine's row, with its entry in the
audit log, and a workflow that makes it true. An administrator may ask for anybody's machine. The
reconciler has workflows begun that a dying controller did not begin.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.access import Caller
from polydev.controller.placement.claims import lock_placement
from polydev.controller.placement.quotas import lock_user
from polydev.controller.store.engine import locks
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.chats import chats
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.store.queries.system import audit
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.log_only_observer import LogOnlyObserver
from polydev.controller.workflows.engine.saga import OnPoint, Saga, SagaObserver, Step, Work
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.hibernation_progress import (
    HibernationProgress,
    ResumeProgress,
)
from polydev.controller.workflows.machines.machines import (
    ANSWER_GRACE_S,
    MachineOperations,
    set_failed,
)
from polydev.shared.domain import (
    Machine,
    MachineKind,
    MachineState,
    Role,
    Usage,
    UserId,
    VmId,
    new_vm_id,
    now,
)
from polydev.shared.errors import MachineBusy, PolydevError

log = logging.getLogger("polydev.controller.workflows")

CREATE, DESTROY = "create-machine", "destroy-machine"
STOP, START = "stop-machine", "start-machine"
HIBERNATE, RESUME = "hibernate-machine", "resume-machine"

_REPEATABLE = (STOP, START, HIBERNATE, RESUME)


class MachineCommands:
    """What a person asks of machines, and the workflows that do it."""

    def __init__(self, operations: MachineOperations, engine: Engine, on_point: OnPoint) -> None:
        self._operations = operations
        self._engine = engine
        self._on_point = on_point

    def register(self) -> None:
        """Make the workflows known to the engine, before its start."""
        for name, saga in (
            (CREATE, self._create_saga()),
            (DESTROY, self._destroy_saga()),
            (STOP, self._stop_saga()),
            (START, self._start_saga(START)),
            (HIBERNATE, self._hibernate_saga()),
            (RESUME, self._start_saga(RESUME)),
        ):
            self._engine.register(name, partial(saga.run, self._engine))

    async def create(
        self, caller: Caller, user_id: UserId, kind: MachineKind, vm_id: VmId | None = None
    ) -> Machine:
        """Have a machine made; answers with its row, `creating`.

        `vm_id`: the id of the new machine, for who may ask twice for the same one.
        Raises: NotAllowed, NoSuchUser; QuotaExceeded; NoCapacity when no host has room now.
        """
        machine = self._operations.plan(
            caller.resolve_user(user_id), kind, vm_id or new_vm_id(), None
        )
        async with self._operations.database.write() as connection:
            await lock_user(connection, machine.user_id)
            there = await machines.find(connection, machine.vm_id)
            if there is None:
                if caller.owner_filter is not None:
                    quotas, owner = self._operations.quotas, machine.user_id
                    await quotas.require_machine(connection, owner, machine.size)
                machine = await self._operations.placement.place(connection, machine)
                entry = caller.audit_entry("machine.create", machine.vm_id, machine.user_id)
                await audit.record(connection, entry)
        machine = there or machine
        await self.begin(CREATE, machine)
        return machine

    async def destroy(self, caller: Caller, vm_id: VmId, reason: str = "") -> Machine:
        """Have a machine destroyed, with its disk; answers with its row, `destroying`.

        Raises NoSuchMachine.
        """
        async with self._operations.database.write() as connection:
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, caller.owner_filter)
            if machine.status is not MachineState.DESTROYING:
                await machines.set_state(connection, vm_id, MachineState.DESTROYING)
                entry = caller.audit_entry("machine.destroy", vm_id, machine.user_id, reason)
                await audit.record(connection, entry)
        machine = replace(machine, status=MachineState.DESTROYING)
        await self.begin(DESTROY, machine)
        return machine

    async def stop(self, caller: Caller, vm_id: VmId) -> Machine:
        """Have a machine stopped; its disk stays. Answers with its row, `stopping`. One that sleeps
        loses its memory.

        Raises: NoSuchMachine; MachineBusy when it does not run, or a login uses it.
        """
        async with self._operations.database.write() as connection:
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, caller.owner_filter)
            if machine.status.is_stopped:
                return machine
            if machine.status is not MachineState.HIBERNATED:
                await _require_unused(connection, machine)
            await machines.set_state(connection, vm_id, MachineState.STOPPING)
            attempt = await machines.increment_attempt(connection, vm_id)
            await audit.record(
                connection, caller.audit_entry("machine.stop", vm_id, machine.user_id)
            )
        machine = replace(machine, status=MachineState.STOPPING, attempt=attempt)
        await self.begin(STOP, machine)
        return machine

    async def hibernate(
        self, cause: Actor, vm_id: VmId, unused_since: datetime | None = None
    ) -> Machine:
        """Have a machine's memory written to disk, and its host's freed. Answers with its row,
        `hibernating`. `unused_since`: only if nobody has used it since then.

        Raises: NoSuchMachine; MachineBusy when it does not run, a login uses it, a CLI answers in
        it, or it was used.
        """
        async with self._operations.database.write() as connection:
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, cause.owner_filter)
            if machine.status.is_hibernated:
                return machine
            await _require_unused(connection, machine)
            await locks.acquire(connection, "chats", machine.user_id)  # turns are added under it
            if await chats.has_active_turn(connection, machine):
                raise MachineBusy(
                    f"A CLI answers in machine {vm_id}", hint="Wait for its end, or stop it"
                )
            if not await hibernation.begin_hibernation(
                connection, vm_id, cause.reason, now(), unused_since
            ):
                raise MachineBusy(f"Machine {vm_id} is in use", hint="Try again later")
            await machines.increment_attempt(connection, vm_id)
            await audit.record(connection, cause.entry("machine.hibernate", machine))
            machine = await machines.get(connection, vm_id, None)
        await self.begin(HIBERNATE, machine)
        return machine

    async def start(self, cause: Actor, vm_id: VmId) -> Machine:
        """Have a machine at rest run again: one that sleeps is woken, another one is started.
        Answers with its row, `resuming`.

        Raises: NoSuchMachine; MachineBusy when it is being made, stopped, put to sleep or
        destroyed; QuotaExceeded; NoCapacity when the host that has its disk has no room now.
        """
        async with self._operations.database.write() as connection:
            owner = (await machines.get(connection, vm_id, cause.owner_filter)).user_id
            await lock_user(connection, owner)
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, cause.owner_filter)
            if machine.status.is_up:
                return machine
            if not machine.status.can_start:
                raise MachineBusy(f"Machine {vm_id} is {machine.status}", hint="Try again later")
            if cause.owner_filter is not None and not await _is_administrator(connection, owner):
                await self._operations.quotas.require_start(connection, owner, machine.size)
            await self._operations.placement.claim_start(connection, machine)
            await machines.increment_attempt(connection, vm_id)
            if machine.has_saved_memory:
                await hibernation.set_resume_reason(connection, vm_id, cause.reason)
                entry = cause.entry("machine.resume", machine)
            else:
                entry = cause.entry("machine.start", machine)
            await audit.record(connection, entry)
            machine = await machines.get(connection, vm_id, None)
        await self.begin(bring_up_workflow(machine), machine)
        return machine

    async def usage(self, caller: Caller) -> tuple[Usage, Usage | None]:
        """What the caller uses, and what they may use; None for an administrator."""
        async with self._operations.database.read(caller.user_id) as connection:
            used = await self._operations.quotas.usage(connection, caller.user_id)
        return used, None if caller.owner_filter is None else self._operations.quotas.limits

    async def begin(self, name: str, machine: Machine) -> None:
        """Have the workflow of that name run for a machine, once for every wish."""
        await self._engine.enqueue(name, workflow_subject(name, machine))

    async def has_ended(self, name: str, machine: Machine) -> bool:
        """Whether that workflow has run to its end for the machine's last wish."""
        return await self._engine.has_ended(name, workflow_subject(name, machine))

    def _create_saga(self) -> Saga:
        operations = self._operations
        step = Step(
            name=CREATE,
            do=_on_machine(operations.bring_up),
            undo=_on_machine(operations.destroy_on_host),
            limit_s=operations.bring_up_limit_s,
        )
        return self._saga(CREATE, step)

    def _start_saga(self, name: str) -> Saga:
        operations = self._operations
        step = Step(
            name=name, do=_on_machine(operations.bring_up), limit_s=operations.bring_up_limit_s
        )
        return self._saga(
            name, step, observer=ResumeProgress(operations) if name == RESUME else None
        )

    def _destroy_saga(self) -> Saga:
        limit_s = self._operations.settings.destroy_limit_s
        always = Step(name=DESTROY, do=_on_machine(self._operations.destroy), limit_s=limit_s)
        return self._saga(DESTROY, always=always)

    def _stop_saga(self) -> Saga:
        limit_s = self._operations.settings.stop_limit_s
        return self._saga(
            STOP, Step(name=STOP, do=_on_machine(self._operations.stop), limit_s=limit_s)
        )

    def _hibernate_saga(self) -> Saga:
        operations, limit_s = (
            self._operations,
            self._operations.settings.hibernate_limit_s + ANSWER_GRACE_S,
        )
        step = Step(name=HIBERNATE, do=_on_machine(operations.hibernate), limit_s=limit_s)
        return self._saga(HIBERNATE, step, observer=HibernationProgress(operations))

    def _saga(
        self,
        name: str,
        *steps: Step,
        always: Step | None = None,
        observer: SagaObserver | None = None,
    ) -> Saga:
        observer, limit_s = (
            observer or _MachineProgress(self._operations.database),
            self._operations.settings.destroy_limit_s,
        )
        return Saga(name, steps, [always] if always else [], observer, limit_s, self._on_point)


def workflow_subject(name: str, machine: Machine) -> str:
    """What a workflow is about: a machine, and for what may be wished again and again, the how
    manieth wish."""
    return f"{machine.vm_id}/{machine.attempt}" if name in _REPEATABLE else machine.vm_id


def bring_up_workflow(machine: Machine) -> str:
    """The workflow that a machine which is `resuming` is brought up by."""
    return RESUME if machine.has_saved_memory else START


async def _require_unused(connection: AsyncConnection, machine: Machine) -> None:
    """Raises MachineBusy unless it runs, and no login uses it."""
    if machine.status is not MachineState.RUNNING:
        raise MachineBusy(f"Machine {machine.vm_id} is {machine.status}", hint="Try again later")
    if await sessions.is_using(connection, machine):
        raise MachineBusy(
            f"A login that goes on uses machine {machine.vm_id}",
            hint="Complete the login, or cancel it",
        )


async def _is_administrator(connection: AsyncConnection, user_id: UserId) -> bool:
    user = await users.find(connection, user_id)
    return user is not None and user.role is Role.ADMINISTRATOR


def _vm_id(subject: str) -> VmId:
    return VmId(subject.partition("/")[0])


def _on_machine(work: Callable[[VmId], Awaitable[None]]) -> Work:
    return lambda subject: work(_vm_id(subject))


class _MachineProgress(LogOnlyObserver):
    """A machine's row tells how it went; nobody cancels these."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        if failure is not None:
            async with self._database.write() as connection:
                await set_failed(connection, _vm_id(subject), failure)
