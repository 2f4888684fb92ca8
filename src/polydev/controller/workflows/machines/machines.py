"""Machines of people: bringing them up, taking them down, and the rows that tell of it.

The connect workflow's steps and `machine_requests.py` use `Machines`. It decides which machine and
how large; how it is made is the host agent's.
Everything may run twice: operations at the host have ids made from the machine's id.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.placement import Placement, Quotas
from polydev.controller.placement.claims import lock_placement
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import hibernation, hosts, machines
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import (
    COMING_UP_STATES,
    AuditEntry,
    HostId,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    SessionId,
    UserId,
    VmId,
    WokeHow,
    now,
)
from polydev.shared.errors import (
    HostLost,
    HostUnreachable,
    MachineBusy,
    NoSuchHost,
    NoSuchMachine,
    PolydevError,
    Unavailable,
)
from polydev.shared.host_client import Hosts
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    MachineView,
    Operation,
    ResumeMachine,
    StartMachine,
    StopMachine,
)
from polydev.shared.providers import all_providers

log = logging.getLogger("polydev.controller.workflows")

ANSWER_GRACE_S = 15.0
"""How much longer than the host's own limit we wait, so that its error arrives and not ours."""

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class MachineOperations:
    """What can be done with machines, as idempotent steps."""

    database: Database
    hosts: Hosts
    settings: ControllerSettings
    installation: str
    """Which Polydev this is: a label of all its machines."""
    token_key: bytes
    """Of this controller alone: the browser machines' tokens are derived from it, not stored."""

    @property
    def placement(self) -> Placement:
        """Where machines go."""
        return Placement(self.settings.host_unseen_limit_s, self.settings.host_dead_limit_s)

    @property
    def quotas(self) -> Quotas:
        """What each person may have."""
        limit = self.settings
        return Quotas(
            machines=limit.quota_machines,
            memory_mib=limit.quota_memory_mib,
            sessions=limit.quota_sessions,
            cli=machine_size(limit, MachineKind.CLI),
            browser=machine_size(limit, MachineKind.BROWSER),
        )

    def plan(
        self, user_id: UserId, kind: MachineKind, vm_id: VmId, session_id: SessionId | None
    ) -> Machine:
        """The row of a machine that is to be made."""
        return Machine(
            vm_id=vm_id,
            user_id=user_id,
            vm_type=kind,
            status=MachineState.CREATING,
            ip_address=None,
            session_id=session_id,
            host_id=None,
            size=machine_size(self.settings, kind),
            error_code=None,
            error=None,
            created_at=now(),
        )

    def token(self, vm_id: VmId) -> SecretStr:
        """The bearer token of a browser machine's service: the same whenever it is asked."""
        words = f"browser-service {vm_id}".encode()
        return SecretStr(hmac.new(self.token_key, words, hashlib.sha256).hexdigest())

    @property
    def bring_up_limit_s(self) -> float:
        """How long a step that brings a machine up may take."""
        return self.settings.machine_limit_s + 2 * ANSWER_GRACE_S

    async def find(self, vm_id: VmId) -> Machine:
        """A machine's row. Raises NoSuchMachine."""
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
        if machine is None:
            raise NoSuchMachine(f"There is no machine {vm_id}")
        return machine

    async def view_on_host(self, machine: Machine) -> MachineView | None:
        """How its host sees it; None if the host has no such machine."""
        try:
            return await self.hosts.of(machine.host_id).machine(machine.vm_id)
        except NoSuchMachine:
            return None

    async def bring_up(self, vm_id: VmId) -> None:
        """Create a machine whose row is there, or start or wake it; done when its channel answers.

        Raises what the host agent says (MachineNotReady names the console log), NoCapacity, and
        HostLost for a machine that cannot be made anew elsewhere.
        """
        machine = await self._with_room(vm_id)
        try:
            view = await self._up(machine)
        except HostUnreachable:
            await self.relocate_from_dead_host(vm_id)
            raise
        address = view.ip_address if view else None
        if (machine.status, machine.ip_address) == (MachineState.RUNNING, address):
            return
        extra_columns = {"used_at": now(), **resume_values(machine, view)}
        async with self.database.write() as connection:
            await machines.set_state(
                connection,
                vm_id,
                MachineState.RUNNING,
                address,
                instead_of=COMING_UP_STATES,
                extra_columns=extra_columns,
            )

    async def relocate_from_dead_host(self, vm_id: VmId) -> bool:
        """If a machine's host is dead, have it made anew on another that has room, unless somebody
        relies on what is on its disk. Whether it has another host now.

        Raises: HostLost.
        """
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
            if machine is None or not await self.is_on_dead_host(connection, machine):
                return False
            is_relied_on = await self._is_relied_on(connection, machine)
        if is_relied_on:
            raise HostLost(
                f"The host {machine.host_id}, which has machine {vm_id}, does not answer",
                hint="Try again when it is back, or destroy the machine and make another",
            )
        async with self.database.write() as connection:
            moved = await self.placement.move_from_dead_host(connection, vm_id)
            if moved is None:
                return False
            why = f"its host {machine.host_id} does not answer; {moved.host_id} has room"
            entry = AuditEntry(
                "controller", "machine.move", vm_id, machine.user_id, "placement", reason=why
            )
            await audit.record(connection, entry)
        log.warning("%s is made anew: %s", vm_id, why)
        return True

    async def is_on_dead_host(self, connection: AsyncConnection, machine: Machine) -> bool:
        """Whether the machine's host has not answered for too long for anybody to wait for it."""
        if machine.host_id is None:
            return False
        try:
            return self.placement.is_host_dead(await hosts.get(connection, machine.host_id))
        except NoSuchHost:
            return True

    async def stop(self, vm_id: VmId) -> None:
        """End a machine's guest; its disk stays. Done also when it does not run."""
        machine = await self.find(vm_id)
        operation = StopMachine(vm_id=vm_id)
        operation_id = f"stop-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.of(machine.host_id)
        await host.run(operation_id, operation, self.settings.stop_limit_s)
        async with self.database.write() as connection:
            await machines.set_state(
                connection, vm_id, MachineState.STOPPED, instead_of=[MachineState.STOPPING]
            )

    async def hibernate(self, vm_id: VmId) -> None:
        """Have a machine's memory written to disk. Done also when it is there already.

        Raises what the host agent says (DiskFull, ...): the machine runs on then.
        """
        machine = await self.find(vm_id)
        operation = HibernateMachine(vm_id=vm_id)
        operation_id = f"hibernate-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.of(machine.host_id)
        view = await host.run(operation_id, operation, self.settings.hibernate_limit_s)
        async with self.database.write() as connection:
            size = 0 if view is None else view.memory_on_disk_bytes
            await hibernation.set_hibernated(connection, vm_id, size)

    async def destroy(self, vm_id: VmId) -> None:
        """Destroy a machine, with all that is its; done also when it never was.

        On a dead host it stays `destroying`: the reconciler goes on when the host is back.
        """
        async with self.database.write() as connection:
            await machines.set_state(connection, vm_id, MachineState.DESTROYING)
        try:
            await self.destroy_on_host(vm_id)
        except HostUnreachable:
            machine = await self.find(vm_id)
            async with self.database.read() as connection:
                if not await self.is_on_dead_host(connection, machine):
                    raise
            log.warning("%s is destroyed when its host %s is back", vm_id, machine.host_id)
            return
        async with self.database.write() as connection:
            await machines.set_state(connection, vm_id, MachineState.DESTROYED)

    async def destroy_on_host(self, vm_id: VmId) -> None:
        """Have its host remove it. Its row is the caller's to change."""
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
        if machine is not None and machine.host_id is not None:
            await self.destroy_at(machine.host_id, vm_id)

    async def destroy_at(self, host_id: HostId, vm_id: VmId) -> None:
        """Have a host remove a machine, whatever its row says."""
        operation = DestroyMachine(vm_id=vm_id)
        operation_id = f"destroy-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.of(host_id)
        await host.run(operation_id, operation, self.settings.destroy_limit_s)

    async def _with_room(self, vm_id: VmId) -> Machine:
        """The machine's row, its room claimed. Raises: NoSuchMachine, MachineBusy, NoCapacity."""
        machine = await self.find(vm_id)
        if machine.status.holds_memory and not machine.status.is_going_down:
            return machine
        async with self.database.write() as connection:
            await lock_placement(connection)
            machine = await machines.get(connection, vm_id, None)
            if machine.status.is_going_down:
                raise MachineBusy(f"Machine {vm_id} is {machine.status}", hint="Try again later")
            if not machine.status.holds_memory:
                await self.placement.claim_start(connection, machine)
        return await self.find(vm_id)

    async def _up(self, machine: Machine) -> MachineView | None:
        view = await self.view_on_host(machine)
        if view is not None and view.state.is_at_rest:
            return await self._start(machine)
        if view is not None and view.state.may_have_saved_memory:
            return await self._wake(machine)
        if view is None or view.state is not MachineState.RUNNING:
            return await self._create(machine)
        return view

    async def _is_relied_on(self, connection: AsyncConnection, machine: Machine) -> bool:
        """Whether there is something on its disk that somebody may want back."""
        if machine.status is MachineState.CREATING:
            return False
        if machine.session_id is None:
            return True
        is_cli = machine.vm_type is MachineKind.CLI
        return is_cli and await sessions.has_completed_with(connection, machine.vm_id)

    async def _create(self, machine: Machine) -> MachineView | None:
        labels = {"installation": self.installation, "user_id": str(machine.user_id)}
        if machine.session_id is not None:
            labels["session_id"] = machine.session_id
        is_browser = machine.vm_type is MachineKind.BROWSER
        operation = CreateMachine(
            vm_id=machine.vm_id,
            machine_kind=machine.vm_type,
            memory_mib=machine.size.memory_mib,
            vcpus=machine.size.vcpus,
            disk_mib=machine.size.disk_mib,
            labels=labels,
            token=self.token(machine.vm_id) if is_browser else None,
            ready_timeout_s=self.settings.machine_limit_s,
        )
        return await self._operate(machine, f"create-{machine.vm_id}-{machine.attempt}", operation)

    async def _start(self, machine: Machine) -> MachineView | None:
        operation = StartMachine(vm_id=machine.vm_id, ready_timeout_s=self.settings.machine_limit_s)
        prefix = f"start-{machine.vm_id}-{uuid.uuid4().hex[:12]}"
        return await self._operate(machine, prefix, operation)

    async def _wake(self, machine: Machine) -> MachineView | None:
        limit_s = self.settings.machine_limit_s
        operation = ResumeMachine(vm_id=machine.vm_id, ready_timeout_s=limit_s)
        prefix = f"resume-{machine.vm_id}-{uuid.uuid4().hex[:12]}"
        return await self._operate(machine, prefix, operation)

    async def _operate(
        self, machine: Machine, prefix: str, operation: Operation
    ) -> MachineView | None:
        """Have an operation carried out. A host keeps an operation's failure under its id, so
        what may go well another time is tried again under the next id."""
        timeout_s = self.settings.machine_limit_s + ANSWER_GRACE_S
        host = self.hosts.of(machine.host_id)
        for attempt in itertools.count(1):
            try:
                return await host.run(f"{prefix}-{attempt}", operation, timeout_s)
            except HostUnreachable:
                raise
            except Unavailable:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(min(0.1 * attempt, 2))
        raise AssertionError("unreachable")


def machine_size(wanted: ControllerSettings, kind: MachineKind) -> MachineSize:
    """What a machine of that kind is made with."""
    if kind is MachineKind.BROWSER:
        return MachineSize(wanted.browser_memory_mib, wanted.browser_vcpus, wanted.browser_disk_mib)
    # One CLI machine serves every CLI that its person connects: enough for the hungriest.
    memory_mib = wanted.cli_memory_mib or max(it.memory_mib for it in all_providers())
    return MachineSize(memory_mib, wanted.cli_vcpus, wanted.cli_disk_mib)


def resume_values(machine: Machine, view: MachineView | None) -> dict[str, Any]:
    """What its host says of how a machine that slept came to run; nothing of one that did not."""
    if not machine.has_saved_memory or view is None or view.wake is None:
        return {}
    wake = view.wake
    return hibernation.resumed_values(wake.at, WokeHow(wake.how), wake.reason, wake.took_s)


async def set_failed(connection: AsyncConnection, vm_id: VmId, failure: PolydevError) -> None:
    """Note in a machine's row why it is not there."""
    await machines.set_failed(connection, vm_id, (failure.code, failure.line()))
