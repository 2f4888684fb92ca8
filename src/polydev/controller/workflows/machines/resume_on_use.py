"""Resume of hibernated machines on use, and the record of use.

Chats, terminals, files, programs and credentials call `ResumeOnUse` before they access a machine.
It resumes a hibernated machine once for all callers and waits for it, and it records the use, so
the idle policy (`idle.py`) does not hibernate the machine. Stopped machines stay stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.machine_commands import MachineCommands
from polydev.controller.workflows.machines.machine_operations import ANSWER_GRACE_S
from polydev.shared.domain import BY_READINESS, Machine, MachineState, UserId, VmId, now
from polydev.shared.errors import MachineBusy, MachineNotReady, PolydevError
from polydev.shared.hints import Hint

log = logging.getLogger("polydev.controller.workflows")

RESUMING_NOTICE = "Its machine is resuming"
"""Notice for a user who waits for a resume."""

_LONGEST_PERIOD_S = 60.0
_RECORDS_PER_IDLE_TIME = 4
_BREATH_S = 0.05
"""Every commit wakes all waiters."""


@dataclass(frozen=True, slots=True)
class ResumeOnUse:
    """Resumes machines on use, and records their use."""

    database: Database
    commands: MachineCommands
    settings: ControllerSettings

    @property
    def period_s(self) -> float:
        """Interval at which continued use is recorded."""
        idle_s = self.settings.hibernate_idle_s
        return min(_LONGEST_PERIOD_S, idle_s / _RECORDS_PER_IDLE_TIME or _LONGEST_PERIOD_S)

    @property
    def limit_s(self) -> float:
        """Time limit for a hibernation in progress, followed by a resume."""
        limit = self.settings
        return limit.hibernate_limit_s + limit.machine_limit_s + 4 * ANSWER_GRACE_S

    async def ensure_running(
        self, cause: Actor, vm_id: VmId, waits: Callable[[], None] = lambda: None
    ) -> Machine:
        """Return the machine once it runs, and record its use.

        A hibernated machine is resumed, and `waits` is called. A machine that is being created is
        waited for.

        Raises: NoSuchMachine; MachineBusy if it is stopped or going down; NoCapacity, QuotaExceeded
        and HostUnreachable if it cannot be resumed; MachineNotReady if the resume failed.
        """
        notify_once, asked = _Once(waits), False
        try:
            async with asyncio.timeout(self.limit_s):
                while True:
                    change = self.database.next_change()
                    machine = await self._read_and_record_use(cause, vm_id)
                    if machine.status is MachineState.RUNNING:
                        return machine
                    _require_usable(machine, asked=asked)
                    if machine.status is not MachineState.CREATING:
                        notify_once()
                    if machine.status is MachineState.HIBERNATED:
                        _require_not_tried(machine, asked=asked)
                        asked = await self._start_resume(cause, vm_id) or asked
                        continue
                    await change.wait()
                    await asyncio.sleep(_BREATH_S)
        except TimeoutError:
            raise MachineNotReady(
                f"Machine {vm_id} did not resume within {self.limit_s:g} s",
                hint=Hint.RUN_DOCTOR.text(),
            ) from None

    @asynccontextmanager
    async def keep_in_use(self, vm_id: VmId) -> AsyncIterator[None]:
        """Keep a running machine from hibernation while the block runs."""
        recording = asyncio.create_task(self._record_use_regularly(vm_id))
        try:
            yield
        finally:
            recording.cancel()
            await asyncio.gather(recording, return_exceptions=True)
            await self.record_use(vm_id)

    def activity_recorder(self, vm_id: VmId) -> ActivityRecorder:
        """Return a recorder of single actions, such as typing."""
        return ActivityRecorder(self, vm_id)

    async def record_use(self, vm_id: VmId) -> None:
        """Record that a machine is in use now."""
        with suppress(PolydevError):  # recorded again soon
            async with self.database.write() as connection:
                await hibernation.set_used(connection, vm_id, now())

    async def _read_and_record_use(self, cause: Actor, vm_id: VmId) -> Machine:
        """Read a machine's row; record the use of a running one, if due."""
        async with self.database.read() as connection:
            machine = await machines.get(connection, vm_id, cause.owner_filter)
        if machine.status is not MachineState.RUNNING:
            return machine
        at = now()
        since = None if machine.used_at is None else (at - machine.used_at).total_seconds()
        if since is None or since > self.period_s:
            async with self.database.write() as connection:
                if not await hibernation.set_used(connection, vm_id, at):
                    return await machines.get(connection, vm_id, cause.owner_filter)
        return machine

    async def _start_resume(self, cause: Actor, vm_id: VmId) -> bool:
        """Start the resume. False if another command came first."""
        try:
            await self.commands.start(cause, vm_id)
        except MachineBusy:
            return False
        return True

    async def _record_use_regularly(self, vm_id: VmId) -> None:
        while True:
            await asyncio.sleep(self.period_s)
            await self.record_use(vm_id)


class ActivityRecorder:
    """Records activity, but no more often than needed."""

    def __init__(self, resume_on_use: ResumeOnUse, vm_id: VmId) -> None:
        self._resume_on_use = resume_on_use
        self._vm_id = vm_id
        self._recorded_at: float | None = None

    async def record(self) -> None:
        """Record an action of the user."""
        at = asyncio.get_running_loop().time()
        if self._recorded_at is None or at - self._recorded_at > self._resume_on_use.period_s:
            self._recorded_at = at
            await self._resume_on_use.record_use(self._vm_id)


class _Once:
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def __call__(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


async def find_usable_cli_machine(connection: AsyncConnection, user_id: UserId) -> Machine | None:
    """Find the user's usable CLI machine, the quickest to use if there are several."""
    for state in filter(lambda it: it.is_usable, BY_READINESS):
        found = await machines.find_cli_machine(connection, user_id, state)
        if found is not None:
            return found
    return None


def _require_not_tried(machine: Machine, *, asked: bool) -> None:
    """Raise MachineNotReady if a requested resume failed."""
    if asked:
        raise MachineNotReady(
            f"Machine {machine.vm_id} did not resume: {machine.hibernation.problem}",
            hint=Hint.RETRY_OR_RUN_DOCTOR.text(),
        )


def _require_usable(machine: Machine, *, asked: bool) -> None:
    """Raise MachineBusy or MachineNotReady if the machine cannot become usable."""
    if machine.status.is_usable or machine.status is MachineState.CREATING:
        return
    if asked and machine.status is MachineState.FAILED:
        why = machine.error or "it failed"
        raise MachineNotReady(f"Machine {machine.vm_id} did not resume: {why}")
    raise MachineBusy(f"Machine {machine.vm_id} is {machine.status}", hint="Start it first")
