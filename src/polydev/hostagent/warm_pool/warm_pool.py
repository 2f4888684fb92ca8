"""The warm pool: clones of a template whose browser is up already.

The lifecycle asks it for a clone before it boots any browser machine, and boots if there is none.
In the background, when the host is idle and has the memory, the pool builds a template for the
requested shape, and then standby clones. It discards a template whose clones fail, and evicts
standby clones if a machine needs their memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import RunningMachine, clear, prepare
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.system.cancellation import run_shielded
from polydev.hostagent.system.error_mapping import as_polydev_error
from polydev.hostagent.warm_pool.cloning import clone
from polydev.hostagent.warm_pool.headroom import Headroom
from polydev.hostagent.warm_pool.standby_clones import STANDBY, StandbyClones
from polydev.hostagent.warm_pool.template_builder import build_template, fits_now
from polydev.hostagent.warm_pool.templates import Template, Templates
from polydev.shared.domain import MachineKind, MachineSize, MachineState
from polydev.shared.errors import MachineNotReady, NoCapacity, PolydevError
from polydev.shared.host_protocol import PURPOSE, CreateMachine, WarmView

log = logging.getLogger("polydev.hostagent")

_MAX_FAILURES = 2
"""Consecutive failures of clones after which their template is discarded."""
_CLONE_SHARE = 1 / 2
"""Share of a machine's time limit for cloning, so that enough is left to boot."""
_TAKE_SHARE = 1 / 6
"""Share of it for a standby clone, which takes a fraction of a second unless it hangs."""
_BUILD_LIMIT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 300.0, 6 * 3600.0
"""Pause after a failed template; it doubles each time."""


@dataclass(frozen=True, slots=True)
class WarmPolicy:
    """The settings of the pool."""

    root: Path
    """Folder of the templates."""
    headroom: Headroom
    is_on: bool = True
    quiet_s: float = 60.0
    """Idle time of the host, without running browser machines, before a template is built."""
    waiting: int = 0
    """Maximum number of standby clones."""
    refill_quiet_s: float = 5.0
    """Idle time before one more standby clone. Logins may run if the CPUs suffice for both."""
    processors: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Number of processors of the host."""
    refill_pause_s: float = 60.0
    """Pause after a standby clone that could not be created."""
    poll_s: float = 5.0


class WarmPool:
    """The warm pool of one host: the `CloneSource` of its lifecycle."""

    def __init__(
        self, host: HostContext, registry: MachineRegistry, policy: WarmPolicy | None
    ) -> None:
        """`policy`: None if every machine boots."""
        self._host = host
        self._registry = registry
        here = host.machines_dir.parent
        self._policy = policy or WarmPolicy(here / "warm", Headroom(here), is_on=False)
        self._headroom = self._policy.headroom
        self._templates = Templates(self._policy.root)
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._not_before_s = 0.0
        self._standby = StandbyClones(host, registry)
        self._quiet_since_s = self._still_since_s = time.monotonic()
        self._requested, self._requests = asyncio.Event(), 0
        self._refill_not_before_s = 0.0
        self._building_since_s: float | None = None
        self._reason = ""
        """Explains why there is no template, or no standby clone."""

    # Clone source ----------------------------------------------------------------------------

    async def take(
        self, record: MachineRecord, limit_s: float
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """Turn a clone into the running machine of a saved record; None if it must boot.

        The registry then has the machine, or the record to boot. It takes at most half of
        `limit_s`.
        """
        if not self._policy.is_on or record.machine_kind is not MachineKind.BROWSER:
            return None
        shape = record.size
        await asyncio.to_thread(self._templates.request, shape)
        template = await self._find_template(shape)
        if template is None:
            await self._standby.end_reserved(record.vm_id)  # its memory counts for the machine
            return None
        until_s = time.monotonic() + limit_s * _CLONE_SHARE
        try:
            async with asyncio.timeout(limit_s * _TAKE_SHARE):
                if (taken := await self._standby.take(record, template)) is not None:
                    return self._register(*taken)
        except Exception as error:
            log.warning("a standby clone cannot become %s: %s", record.vm_id, _message(error))
            record = await self._clear(record)
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                cloned = await self._clone(record, template)
        except Exception as error:
            await self._clear(record)
            await self._record_failure(template, record, error)
            return None
        self._failures = 0
        return self._register(*cloned)

    def _register(
        self, record: MachineRecord, machine: RunningMachine
    ) -> tuple[MachineRecord, RunningMachine]:
        self._registry.running[record.vm_id] = machine
        return record.updated(state=MachineState.RUNNING, is_clone=True), machine

    @contextmanager
    def reserve(self, request: CreateMachine) -> Iterator[None]:
        """Reserve the standby clone that `take` will turn into that machine, if one fits."""
        if request.machine_kind is MachineKind.BROWSER:
            self._standby.reserve(request.vm_id, request.size)
        try:
            yield
        finally:
            self._standby.release(request.vm_id)

    @asynccontextmanager
    async def admit(self, machine: CreateMachine | MachineRecord) -> AsyncIterator[None]:
        """Claim memory for a machine until it runs; if it is short, evict clones.

        The clone that is reserved for this machine goes last. Raises: NoCapacity.
        """
        with ExitStack() as claim:
            while True:
                try:
                    claim.enter_context(self._claim(machine))
                    break
                except NoCapacity:
                    evicted = await self.evict_standby()
                    if not evicted and not await self._standby.end_reserved(machine.vm_id):
                        raise
            yield

    def _claim(self, machine: CreateMachine | MachineRecord) -> AbstractContextManager[None]:
        """A reserved clone counts as part of the machine that it is reserved for."""
        running = self._registry.memory_mib()
        for vm_id in self._standby.reserved:
            running.pop(vm_id, None)
        held_mib = self._standby.held_bytes(machine.vm_id) >> 20
        admission = self._host.admission
        return admission.admitted(machine.vm_id, machine.memory_mib, running, held_mib)

    async def evict_standby(self) -> bool:
        """Destroy all clones that are not reserved. Return True if there were any."""
        self._still_since_s = time.monotonic()
        return await self._standby.evict()

    # Requests and status ---------------------------------------------------------------------

    async def request_template(self, shape: MachineSize) -> None:
        """Request a template as soon as there is headroom, even on a busy host."""
        await asyncio.to_thread(self._templates.request, shape)
        self._not_before_s = 0.0
        self._requests += 1
        self._requested.set()

    async def view(self) -> WarmView:
        """Return the status of the pool."""
        if not self._policy.is_on:
            return WarmView(state="off", words="switched off in the settings")
        if self._building_since_s is not None:
            took = time.monotonic() - self._building_since_s
            return WarmView(state="making", words=f"a template is being built, {took:.0f} s so far")
        if self._requested.is_set():
            return WarmView(state="making", words="a template is requested")
        shape = await asyncio.to_thread(self._templates.requested)
        if shape is None:
            return WarmView(state="none", words="no browser machine has been requested")
        if (template := await self._find_template(shape)) is not None:
            size_mib = await asyncio.to_thread(lambda: template.size) / 2**20
            count = self._standby.count
            standby = f", {count} of {self._policy.waiting} clones wait for a login"
            message = f"a template of {size_mib:.0f} MiB{standby if self._policy.waiting else ''}"
            return WarmView(state="ready", words=message, waiting=count)
        return WarmView(state="none", words=self._reason or "waiting until the host is idle")

    async def run(self) -> None:
        """Build templates and standby clones when they are due, until cancelled."""
        key = await asyncio.to_thread(self._host.memory_keys.load) if self._policy.is_on else None
        await asyncio.to_thread(self._templates.clean, key.id if key else None)
        if not self._policy.is_on:
            return
        try:
            await self._work()
        finally:
            await run_shielded(self._standby.evict())

    async def _work(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._policy.poll_s):
                    await self._requested.wait()
            requests = self._requests
            try:
                await self._poll(is_requested=self._requested.is_set())
            except Exception as error:
                log.warning("no template of warm browser machines: %s", as_polydev_error(error))
                self._reason = f"the last could not be built: {as_polydev_error(error).message}"
                self._not_before_s = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            if requests == self._requests:  # no other request arrived
                self._requested.clear()

    async def _clone(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine]:
        began = time.monotonic()
        prepared = await run_shielded(prepare(self._host, record, fresh=False))
        self._registry.records[record.vm_id] = prepared.record
        machine = await clone(self._host, template, prepared)
        log.info("%s: cloned in %.2f s", record.vm_id, time.monotonic() - began)
        return prepared.record, machine

    async def _clear(self, record: MachineRecord) -> MachineRecord:
        """Remove a failed attempt. Its uid may be in use again, so the record gets a free one."""
        fresh = record.updated(uid=self._registry.free_uid())
        self._registry.records[record.vm_id] = fresh
        await run_shielded(clear(self._host, fresh))
        return fresh

    async def _record_failure(
        self, template: Template, record: MachineRecord, error: Exception
    ) -> None:
        self._failures += 1
        message = _message(error)
        log.warning("booting %s, because cloning it failed: %s", record.vm_id, message)
        if self._failures >= _MAX_FAILURES:
            log.warning("discarding the template of warm browser machines: its clones fail")
            self._failures = 0
            await asyncio.to_thread(self._templates.discard, template)

    async def _find_template(self, shape: MachineSize) -> Template | None:
        for template in await asyncio.to_thread(self._templates.all):
            with suppress(PolydevError):
                if await fits_now(self._host, template, shape):
                    return template
        return None

    async def _poll(self, *, is_requested: bool) -> None:
        """Build a template or a standby clone if it is due; destroy useless clones."""
        shape = await asyncio.to_thread(self._templates.requested)
        self._observe_activity()
        template = None if shape is None else await self._find_template(shape)
        is_short = await asyncio.to_thread(self._headroom.is_short)
        await self._standby.retain(None if is_short else template)
        if shape is None:
            return
        is_due = self._is_refill_due(shape) if template else is_requested or self._is_build_due()
        if not is_due:
            return
        if shortage := await asyncio.to_thread(self._headroom.shortage, shape):
            self._reason = shortage
        elif template is None:
            await self._build(shape)
        else:
            await self._refill(template)

    def _observe_activity(self) -> None:
        """Note when the host was last busy."""
        for record in self._registry.records.values():
            if record.labels.get(PURPOSE) == STANDBY:
                continue
            if not record.state.is_settled:
                self._quiet_since_s = self._still_since_s = time.monotonic()
            elif record.machine_kind is MachineKind.BROWSER:
                self._quiet_since_s = time.monotonic()

    def _is_build_due(self) -> bool:
        """Return True if the host has been idle long enough."""
        now_s = time.monotonic()
        return now_s >= max(self._quiet_since_s + self._policy.quiet_s, self._not_before_s)

    def _is_refill_due(self, shape: MachineSize) -> bool:
        due_s = max(self._still_since_s + self._policy.refill_quiet_s, self._refill_not_before_s)
        if self._standby.count >= self._policy.waiting or time.monotonic() < due_s:
            return False
        busy = self._busy_processors()
        return not busy or busy + shape.vcpus <= self._policy.processors

    def _busy_processors(self) -> int:
        """Count the processors of all logins that run or are about to."""
        records, reserved = self._registry.records.values(), self._standby.reserved
        return sum(
            it.vcpus
            for it in records
            if it.machine_kind is MachineKind.BROWSER
            and (it.labels.get(PURPOSE) != STANDBY or it.vm_id in reserved)
            and (it.vm_id in self._registry.running or it.state is MachineState.CREATING)
        )

    async def _refill(self, template: Template) -> None:
        """Create one more standby clone, unless machines use all memory.

        A failure does not keep the pool from building templates.
        """
        memory_mib, others = template.described.shape.memory_mib, self._registry.memory_mib()
        try:
            with self._host.admission.admitted("a standby clone", memory_mib, others):
                pass
            await self._while_headroom(self._standby.create(template, _BUILD_LIMIT_S))
        except Exception as error:
            self._reason = _message(error)
            self._refill_not_before_s = time.monotonic() + self._policy.refill_pause_s
            if not isinstance(error, (NoCapacity, MachineNotReady)):
                log.warning("cannot create a standby clone: %s", _message(error))

    async def _build(self, shape: MachineSize) -> None:
        building = build_template(
            self._host, self._registry, self._templates, shape, _BUILD_LIMIT_S
        )
        self._building_since_s = time.monotonic()
        try:
            await self._while_headroom(building)
        finally:
            self._building_since_s = None
        self._failures, self._pause_s, self._reason = 0, _FIRST_PAUSE_S, ""

    async def _while_headroom(self, work: Coroutine[Any, Any, object]) -> None:
        """Run work; cancel it if memory runs short.

        Raises: MachineNotReady, NoCapacity if it was evicted, and what the work raises.
        """
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=self._policy.poll_s))[0]:
                if await asyncio.to_thread(self._headroom.is_short):
                    raise MachineNotReady("the host ran short of memory")
            if task.cancelled():
                raise NoCapacity("a machine needed its memory")
            task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})


def _message(error: Exception) -> str:
    return as_polydev_error(error).message if str(error) else "it took too long"
