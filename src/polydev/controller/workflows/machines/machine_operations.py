"""Idempotent operations on machines, for the steps of workflows.

They carry out host operations and keep the machine's row in step. Everything may run twice.
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
from polydev.shared.host_client import HostClients
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    HostMachineView,
    Operation,
    ResumeMachine,
    StartMachine,
    StopMachine,
)

log = logging.getLogger("polydev.controller.workflows")

ANSWER_GRACE_S = 15.0
"""Extra time beyond the host's own limit, so the host's error arrives first."""

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class MachineOperations:
    """Creates, starts, stops and destroys machines."""

    database: Database
    hosts: HostClients
    settings: ControllerSettings
    installation: str
    """Id of this Polydev, a label of all of its machines."""
    token_key: bytes
    """Key from which tokens of browser machines are derived, so they are not stored."""

    @property
    def placement(self) -> Placement:
        """Placement with the limits of the settings."""
        return Placement(self.settings.host_unseen_limit_s, self.settings.host_dead_limit_s)

    @property
    def quotas(self) -> Quotas:
        """Quotas of the settings."""
        limit = self.settings
        return Quotas(
            machines=limit.quota_machines,
            memory_mib=limit.quota_memory_mib,
            sessions=limit.quota_sessions,
            cli=limit.machine_size(MachineKind.CLI),
            browser=limit.machine_size(MachineKind.BROWSER),
        )

    def plan(
        self, user_id: UserId, kind: MachineKind, vm_id: VmId, session_id: SessionId | None
    ) -> Machine:
        """Build the row of a new machine."""
        return Machine(
            vm_id=vm_id,
            user_id=user_id,
            vm_type=kind,
            status=MachineState.CREATING,
            ip_address=None,
            session_id=session_id,
            host_id=None,
            size=self.settings.machine_size(kind),
            error_code=None,
            error=None,
            created_at=now(),
        )

    def token(self, vm_id: VmId) -> SecretStr:
        """Derive the bearer token of a browser machine's service."""
        message = f"browser-service {vm_id}".encode()
        return SecretStr(hmac.new(self.token_key, message, hashlib.sha256).hexdigest())

    @property
    def bring_up_limit_s(self) -> float:
        """Time limit of a step that brings up a machine."""
        return self.settings.machine_limit_s + 2 * ANSWER_GRACE_S

    async def find(self, vm_id: VmId) -> Machine:
        """Read a machine's row. Raises NoSuchMachine."""
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
        if machine is None:
            raise NoSuchMachine(f"There is no machine {vm_id}")
        return machine

    async def view_on_host(self, machine: Machine) -> HostMachineView | None:
        """Get the host's view of a machine. None if the host does not have it."""
        try:
            return await self.hosts.client(machine.host_id).machine(machine.vm_id)
        except NoSuchMachine:
            return None

    async def bring_up(self, vm_id: VmId) -> None:
        """Create, start or resume a machine that has a row, until its channel answers.

        Raises the host agent's errors (MachineNotReady names the console log), NoCapacity, and
        HostLost if the machine cannot be recreated elsewhere.
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
        """Move a machine off a dead host, unless its disk holds user data.

        Returns True if it has another host now. Raises HostLost.
        """
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
            if machine is None or not await self.is_on_dead_host(connection, machine):
                return False
            is_relied_on = await self._is_relied_on(connection, machine)
        if is_relied_on:
            raise HostLost(
                f"Host {machine.host_id} of machine {vm_id} does not answer",
                hint="Try again when it is back, or destroy the machine and create another",
            )
        async with self.database.write() as connection:
            moved = await self.placement.move_from_dead_host(connection, vm_id)
            if moved is None:
                return False
            why = f"host {machine.host_id} does not answer; {moved.host_id} has capacity"
            entry = AuditEntry(
                "controller", "machine.move", vm_id, machine.user_id, "placement", reason=why
            )
            await audit.record(connection, entry)
        log.warning("recreating %s: %s", vm_id, why)
        return True

    async def is_on_dead_host(self, connection: AsyncConnection, machine: Machine) -> bool:
        """Check whether the machine's host is dead."""
        if machine.host_id is None:
            return False
        try:
            return self.placement.is_host_dead(await hosts.get(connection, machine.host_id))
        except NoSuchHost:
            return True

    async def stop(self, vm_id: VmId) -> None:
        """Stop a machine. Its disk stays. Idempotent."""
        machine = await self.find(vm_id)
        operation = StopMachine(vm_id=vm_id)
        operation_id = f"stop-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.client(machine.host_id)
        await host.run(operation_id, operation, self.settings.stop_limit_s)
        async with self.database.write() as connection:
            await machines.set_state(
                connection, vm_id, MachineState.STOPPED, instead_of=[MachineState.STOPPING]
            )

    async def hibernate(self, vm_id: VmId) -> None:
        """Save a machine's memory to disk. Idempotent.

        Raises the host agent's errors (DiskFull, ...). The machine keeps running then.
        """
        machine = await self.find(vm_id)
        operation = HibernateMachine(vm_id=vm_id)
        operation_id = f"hibernate-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.client(machine.host_id)
        view = await host.run(operation_id, operation, self.settings.hibernate_limit_s)
        async with self.database.write() as connection:
            size = 0 if view is None else view.memory_on_disk_bytes
            await hibernation.set_hibernated(connection, vm_id, size)

    async def destroy(self, vm_id: VmId) -> None:
        """Destroy a machine with everything that belongs to it. Idempotent.

        On a dead host it stays `destroying`; the reconciler continues when the host is back.
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
            log.warning("%s will be destroyed when host %s is back", vm_id, machine.host_id)
            return
        async with self.database.write() as connection:
            await machines.set_state(connection, vm_id, MachineState.DESTROYED)

    async def destroy_on_host(self, vm_id: VmId) -> None:
        """Destroy a machine on its host. The caller changes the row."""
        async with self.database.read() as connection:
            machine = await machines.find(connection, vm_id)
        if machine is not None and machine.host_id is not None:
            await self.destroy_at(machine.host_id, vm_id)

    async def destroy_at(self, host_id: HostId, vm_id: VmId) -> None:
        """Destroy a machine on one host, whatever its row says."""
        operation = DestroyMachine(vm_id=vm_id)
        operation_id = f"destroy-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        host = self.hosts.client(host_id)
        await host.run(operation_id, operation, self.settings.destroy_limit_s)

    async def _with_room(self, vm_id: VmId) -> Machine:
        """Claim resources for a machine. Raises: NoSuchMachine, MachineBusy, NoCapacity."""
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

    async def _up(self, machine: Machine) -> HostMachineView | None:
        view = await self.view_on_host(machine)
        if view is not None and view.state.is_at_rest:
            return await self._start(machine)
        if view is not None and view.state.may_have_saved_memory:
            return await self._wake(machine)
        if view is None or view.state is not MachineState.RUNNING:
            return await self._create(machine)
        return view

    async def _is_relied_on(self, connection: AsyncConnection, machine: Machine) -> bool:
        """Check whether the machine's disk may hold user data."""
        if machine.status is MachineState.CREATING:
            return False
        if machine.session_id is None:
            return True
        is_cli = machine.vm_type is MachineKind.CLI
        return is_cli and await sessions.has_completed_with(connection, machine.vm_id)

    async def _create(self, machine: Machine) -> HostMachineView | None:
        labels = {"installation": self.installation, "user_id": str(machine.user_id)}
        if machine.session_id is not None:
            labels["session_id"] = machine.session_id
        is_browser = machine.vm_type is MachineKind.BROWSER
        operation = CreateMachine(
            vm_id=machine.vm_id,
            machine_kind=machine.vm_type,
            **machine.size.fields(),
            labels=labels,
            token=self.token(machine.vm_id) if is_browser else None,
            ready_timeout_s=self.settings.machine_limit_s,
        )
        return await self._operate(machine, f"create-{machine.vm_id}-{machine.attempt}", operation)

    async def _start(self, machine: Machine) -> HostMachineView | None:
        operation = StartMachine(vm_id=machine.vm_id, ready_timeout_s=self.settings.machine_limit_s)
        prefix = f"start-{machine.vm_id}-{uuid.uuid4().hex[:12]}"
        return await self._operate(machine, prefix, operation)

    async def _wake(self, machine: Machine) -> HostMachineView | None:
        limit_s = self.settings.machine_limit_s
        operation = ResumeMachine(vm_id=machine.vm_id, ready_timeout_s=limit_s)
        prefix = f"resume-{machine.vm_id}-{uuid.uuid4().hex[:12]}"
        return await self._operate(machine, prefix, operation)

    async def _operate(
        self, machine: Machine, prefix: str, operation: Operation
    ) -> HostMachineView | None:
        """Run an operation, with retries.

        A host stores an operation's failure under its id, so each retry has another id.
        """
        timeout_s = self.settings.machine_limit_s + ANSWER_GRACE_S
        host = self.hosts.client(machine.host_id)
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


def resume_values(machine: Machine, view: HostMachineView | None) -> dict[str, Any]:
    """Return the columns that record a resume. Empty if the machine was not hibernated."""
    if not machine.has_saved_memory or view is None or view.wake is None:
        return {}
    wake = view.wake
    return hibernation.resumed_values(wake.at, WokeHow(wake.how), wake.reason, wake.took_s)


async def set_failed(connection: AsyncConnection, vm_id: VmId, failure: PolydevError) -> None:
    """Record a failure in the machine's row."""
    await machines.set_failed(connection, vm_id, (failure.code, failure.line()))
