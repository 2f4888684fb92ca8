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

from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import (
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    PersonId,
    SessionId,
    VmId,
    now,
)
from polydev.errors import HostUnreachable, NoSuchMachine, PolydevError, Unavailable
from polydev.hostapi import (
    CreateMachine,
    DestroyMachine,
    MachineView,
    Operation,
    StartMachine,
    StopMachine,
)
from polydev.hosts import Host
from polydev.providers import all_providers
from polydev.settings import ControllerSettings
from polydev.store import machines
from polydev.store.database import Database

log = logging.getLogger("polydev.workflows")

ANSWER_GRACE_S = 15.0
"""How much longer than the host's own limit we wait, so that its error arrives and not ours."""

_ATTEMPTS = 20
_AT_REST = (MachineState.STOPPED, MachineState.FAILED)


@dataclass(frozen=True, slots=True)
class Machines:
    """What can be done with machines, as idempotent steps."""

    database: Database
    host: Host
    settings: ControllerSettings
    token_key: bytes
    """Of this controller alone: the browser machines' tokens are derived from it, not stored."""

    def plan(
        self, user_id: PersonId, kind: MachineKind, vm_id: VmId, session_id: SessionId | None
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
            size=self._size(kind),
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

    async def at_host(self, vm_id: VmId) -> MachineView | None:
        """How its host sees it; None if the host has no such machine."""
        try:
            return await self.host.machine(vm_id)
        except NoSuchMachine:
            return None

    async def bring_up(self, vm_id: VmId) -> None:
        """Create a machine whose row there is, or start it again; done when its channel answers.

        Raises what the host agent says: MachineNotReady names the console log.
        """
        machine = await self.find(vm_id)
        view = await self.at_host(vm_id)
        if view is not None and view.state in _AT_REST:
            view = await self._start(machine)
        elif view is None or view.state is not MachineState.RUNNING:
            view = await self._create(machine)
        async with self.database.write() as connection:
            address = view.ip_address if view else None
            await machines.set_state(connection, vm_id, MachineState.RUNNING, address)

    async def halt(self, vm_id: VmId) -> None:
        """End a machine's guest; its disk stays. Done also when it does not run."""
        operation = StopMachine(vm_id=vm_id)
        operation_id = f"stop-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        await self.host.run(operation_id, operation, self.settings.stop_limit_s)
        async with self.database.write() as connection:
            await machines.set_state(
                connection, vm_id, MachineState.STOPPED, instead_of=[MachineState.STOPPING]
            )

    async def take_down(self, vm_id: VmId) -> None:
        """Destroy a machine, with all that is its; done also when it never was."""
        async with self.database.write() as connection:
            await machines.set_state(connection, vm_id, MachineState.DESTROYING)
        await self.erase(vm_id)
        async with self.database.write() as connection:
            await machines.set_state(connection, vm_id, MachineState.DESTROYED)

    async def erase(self, vm_id: VmId) -> None:
        """Have the host remove it. Its row is the caller's to change."""
        operation = DestroyMachine(vm_id=vm_id)
        operation_id = f"destroy-{vm_id}-{uuid.uuid4().hex[:12]}"  # idempotent in itself
        await self.host.run(operation_id, operation, self.settings.destroy_limit_s)

    async def _create(self, machine: Machine) -> MachineView | None:
        labels: dict[str, str] = {"user_id": machine.user_id}
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
        return await self._operate(f"create-{machine.vm_id}", operation)

    async def _start(self, machine: Machine) -> MachineView | None:
        operation = StartMachine(vm_id=machine.vm_id, ready_timeout_s=self.settings.machine_limit_s)
        return await self._operate(f"start-{machine.vm_id}-{uuid.uuid4().hex[:12]}", operation)

    async def _operate(self, prefix: str, operation: Operation) -> MachineView | None:
        """Have an operation carried out. A host keeps an operation's failure under its id, so
        what may go well another time is tried again under the next id."""
        timeout_s = self.settings.machine_limit_s + ANSWER_GRACE_S
        for attempt in itertools.count(1):
            try:
                return await self.host.run(f"{prefix}-{attempt}", operation, timeout_s)
            except HostUnreachable:
                raise
            except Unavailable:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(min(0.1 * attempt, 2))
        raise AssertionError("unreachable")

    def _size(self, kind: MachineKind) -> MachineSize:
        wanted = self.settings
        if kind is MachineKind.BROWSER:
            return MachineSize(
                wanted.browser_memory_mib, wanted.browser_vcpus, wanted.browser_disk_mib
            )
        # One CLI machine serves every CLI that its person connects: enough for the hungriest.
        memory_mib = wanted.cli_memory_mib or max(it.memory_mib for it in all_providers())
        return MachineSize(memory_mib, wanted.cli_vcpus, wanted.cli_disk_mib)


async def set_failed(connection: AsyncConnection, vm_id: VmId, failure: PolydevError) -> None:
    """Note in a machine's row why it is not there."""
    await machines.set_failed(connection, vm_id, (failure.code, failure.line()))
