"""Machine commands (create, destroy, stop, start, hibernate) and their workflows.

Each command changes the machine's row, with an audit log entry, and starts a workflow that carries
it out. Administrators may command every machine. The reconciler starts workflows that a controller
failed to start before it died.
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
from polydev.controller.workflows.machines.machine_operations import (
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
    """Accepts machine commands, and runs their workflows."""

    def __init__(self, operations: MachineOperations, engine: Engine, on_point: OnPoint) -> None:
        self._operations = operations
        self._engine = engine
        self._on_point = on_point

    def register(self) -> None:
        """Register the workflows with the engine, before its start."""
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
        """Create a machine. Returns its row, `creating`.

        `vm_id`: id of the new machine, for a caller that may repeat the command.
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
        """Destroy a machine and its disk. Returns its row, `destroying`.

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
        """Stop a machine. Returns its row, `stopping`.

        Its disk stays. A hibernated machine loses its saved memory.
        Raises: NoSuchMachine; MachineBusy if it is not running, or a login uses it.
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
        """Save a machine's memory to disk, and free its host's. Returns its row, `hibernating`.

        `unused_since`: only if it has not been used since then.
        Raises: NoSuchMachine; MachineBusy if it is not running, was used, or a login or a chat turn
        uses it.
        """
        async with self._operations.database.write() as connection:
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, cause.owner_filter)
            if machine.status.is_hibernated:
                return machine
            await _require_unused(connection, machine)
            await locks.acquire(connection, "chats", machine.user_id)  # new turns need this lock
            if await chats.has_active_turn(connection, machine):
                raise MachineBusy(
                    f"A chat turn is running in machine {vm_id}",
                    hint="Wait for it to end, or stop it",
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
        """Start or resume a machine. Returns its row, `resuming`.

        Raises: NoSuchMachine; MachineBusy if another command is changing it; QuotaExceeded;
        NoCapacity if the host of its disk has no capacity now.
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
        """Return the caller's usage and quotas. Administrators have no quotas (None)."""
        async with self._operations.database.read(caller.user_id) as connection:
            used = await self._operations.quotas.usage(connection, caller.user_id)
        return used, None if caller.owner_filter is None else self._operations.quotas.limits

    async def begin(self, name: str, machine: Machine) -> None:
        """Start a machine's workflow. Idempotent for each command."""
        await self._engine.enqueue(name, workflow_subject(name, machine))

    async def has_ended(self, name: str, machine: Machine) -> bool:
        """Check whether the workflow of the machine's last command has ended."""
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
    """Build a workflow's subject: the machine id, and the command's number if it is repeatable."""
    return f"{machine.vm_id}/{machine.attempt}" if name in _REPEATABLE else machine.vm_id


def bring_up_workflow(machine: Machine) -> str:
    """Return the workflow that brings up a `resuming` machine."""
    return RESUME if machine.has_saved_memory else START


async def _require_unused(connection: AsyncConnection, machine: Machine) -> None:
    """Check that a machine is running and no login uses it. Raises MachineBusy."""
    if machine.status is not MachineState.RUNNING:
        raise MachineBusy(f"Machine {machine.vm_id} is {machine.status}", hint="Try again later")
    if await sessions.is_using(connection, machine):
        raise MachineBusy(
            f"A login uses machine {machine.vm_id}",
            hint="Complete or cancel the login",
        )


async def _is_administrator(connection: AsyncConnection, user_id: UserId) -> bool:
    user = await users.find(connection, user_id)
    return user is not None and user.role is Role.ADMINISTRATOR


def _vm_id(subject: str) -> VmId:
    return VmId(subject.partition("/")[0])


def _on_machine(work: Callable[[VmId], Awaitable[None]]) -> Work:
    return lambda subject: work(_vm_id(subject))


class _MachineProgress(LogOnlyObserver):
    """Observer that records a failure in the machine's row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        if failure is not None:
            async with self._database.write() as connection:
                await set_failed(connection, _vm_id(subject), failure)
