"""Browser machines whose browser is up when they are asked for: clones of a template.

`machines.py` asks for one before it boots any browser machine, and boots when there is none to be
had, for whatever reason. In the background a template is made for the machines that are asked for,
when nothing else is going on and the host has the memory, and then clones that wait for whoever is
next; a template that fails its clones is thrown away, and clones that wait give way to any machine
that needs their memory. `server.py` and `diagnosis.py` tell how it stands.
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
from polydev.hostagent.warm_pool.standby_clones import WAITS, StandbyClones
from polydev.hostagent.warm_pool.template_builder import fits_now, make
from polydev.hostagent.warm_pool.templates import Shape, Template, Templates
from polydev.shared.domain import MachineKind, MachineState
from polydev.shared.errors import MachineNotReady, NoCapacity, PolydevError
from polydev.shared.host_protocol import PURPOSE, CreateMachine, WarmShape, WarmView

log = logging.getLogger("polydev.hostagent")

_FAILURES = 2
"""So many clones in a row may fail before their template is thrown away."""
_SHARE = 1 / 2
"""Of the time that a machine may take: for the clone, so that there is enough left to boot."""
_SHARE_TO_TAKE = 1 / 6
"""Of the same: for one that waits, which takes a fraction of a second unless it hangs."""
_MAKE_LIMIT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 300.0, 6 * 3600.0
"""After a template that could not be made; twice as long each time."""


@dataclass(frozen=True, slots=True)
class WarmPolicy:
    """What the settings say."""

    root: Path
    """Where the template lies."""
    room: Headroom
    is_on: bool = True
    quiet_s: float = 60.0
    """How long nothing was made or changed, and no browser machine ran, before one is made."""
    waiting: int = 0
    """How many clones wait, at most."""
    refill_quiet_s: float = 5.0
    """How long nothing was made or changed before one more is made to wait. Others may log in, if
    there are processors for both."""
    processors: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Of the host."""
    refill_pause_s: float = 60.0
    """After one that could not be made to wait."""
    look_s: float = 5.0


class WarmPool:
    """Of one host."""

    def __init__(
        self, host: HostContext, registry: MachineRegistry, policy: WarmPolicy | None
    ) -> None:
        """`policy`: None where machines are only booted."""
        self._host = host
        self._registry = registry
        here = host.machines_dir.parent
        self._policy = policy or WarmPolicy(here / "warm", Headroom(here), is_on=False)
        self._room = self._policy.room
        self._templates = Templates(self._policy.root)
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._not_before_s = 0.0
        self._waiting = StandbyClones(host, registry)
        self._quiet_since_s = self._still_since_s = time.monotonic()
        self._asked, self._asks = asyncio.Event(), 0
        self._refill_not_before_s = 0.0
        self._making_since_s: float | None = None
        self._why_not = ""

    # What is asked ---------------------------------------------------------------------------

    async def take(
        self, record: MachineRecord, limit_s: float
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """A clone that is the machine of this record, which is kept but has nothing yet.

        None when there is none to be had: nothing is left then but the record that the roster has.
        Takes at most half of `limit_s`.
        """
        if not self._policy.is_on or record.machine_kind is not MachineKind.BROWSER:
            return None
        shape = Shape.of(record)
        await asyncio.to_thread(self._templates.want, shape)
        template = await self._fitting(shape)
        if template is None:
            await self._waiting.end_reserved(record.vm_id)  # it counts as a part of what is booted
            return None
        until_s = time.monotonic() + limit_s * _SHARE
        try:
            async with asyncio.timeout(limit_s * _SHARE_TO_TAKE):
                if (made := await self._waiting.take(record, template)) is not None:
                    return made
        except Exception as error:
            log.warning("a clone that waited cannot be %s: %s", record.vm_id, _words(error))
            record = await self._clear(record)
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                made = await self._cloned(record, template)
        except Exception as error:
            await self._clear(record)
            await self._failed(template, record, error)
            return None
        self._failures = 0
        return made

    @contextmanager
    def reserve(self, request: CreateMachine) -> Iterator[None]:
        """Reserve the standby clone that `take` will turn into that machine, if one fits."""
        if request.machine_kind is MachineKind.BROWSER:
            self._waiting.reserve(request.vm_id, Shape.of(request))
        try:
            yield
        finally:
            self._waiting.release(request.vm_id)

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
                    if not evicted and not await self._waiting.end_reserved(machine.vm_id):
                        raise
            yield

    def _claim(self, machine: CreateMachine | MachineRecord) -> AbstractContextManager[None]:
        """A reserved clone counts as part of the machine that it is reserved for."""
        running = self._registry.memory_mib()
        for vm_id in self._waiting.reserved:
            running.pop(vm_id, None)
        held_mib = self._waiting.held_bytes(machine.vm_id) >> 20
        admission = self._host.admission
        return admission.admitted(machine.vm_id, machine.memory_mib, running, held_mib)

    async def evict_standby(self) -> bool:
        """Destroy all clones that are not reserved. Return True if there were any."""
        self._still_since_s = time.monotonic()
        return await self._waiting.give_way()

    async def ask(self, shape: WarmShape) -> None:
        """Have a template made as soon as there is room, however busy the host is."""
        await asyncio.to_thread(self._templates.want, Shape(**shape.model_dump()))
        self._not_before_s = 0.0
        self._asks += 1
        self._asked.set()

    async def view(self) -> WarmView:
        """How it stands."""
        if not self._policy.is_on:
            return WarmView(state="off", words="switched off in the settings")
        if self._making_since_s is not None:
            took = time.monotonic() - self._making_since_s
            return WarmView(state="making", words=f"a template is being made, {took:.0f} s so far")
        if self._asked.is_set():
            return WarmView(state="making", words="a template is asked for")
        shape = await asyncio.to_thread(self._templates.wanted)
        if shape is None:
            return WarmView(state="none", words="no browser machine has been asked for")
        if (template := await self._fitting(shape)) is not None:
            size_mib = await asyncio.to_thread(lambda: template.size) / 2**20
            count = self._waiting.count
            waiting = f", {count} of {self._policy.waiting} clones wait for a login"
            words = f"a template of {size_mib:.0f} MiB{waiting if self._policy.waiting else ''}"
            return WarmView(state="ready", words=words, waiting=count)
        return WarmView(state="none", words=self._why_not or "waiting for a quiet moment")

    async def run(self) -> None:
        """Make templates when they are due, until cancelled."""
        key = await asyncio.to_thread(self._host.memory_keys.load) if self._policy.is_on else None
        await asyncio.to_thread(self._templates.clean, key.id if key else None)
        if not self._policy.is_on:
            return
        try:
            await self._work()
        finally:
            await run_shielded(self._waiting.give_way())

    async def _work(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._policy.look_s):
                    await self._asked.wait()
            asks = self._asks
            try:
                await self._look(is_asked=self._asked.is_set())
            except Exception as error:
                log.warning("no template of warm browser machines: %s", as_polydev_error(error))
                self._why_not = f"the last could not be made: {as_polydev_error(error).message}"
                self._not_before_s = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            if asks == self._asks:  # nobody asked for anything else meanwhile
                self._asked.clear()

    # How it is done --------------------------------------------------------------------------

    async def _cloned(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine]:
        began = time.monotonic()
        prepared = await run_shielded(prepare(self._host, record, fresh=False))
        self._registry.records[record.vm_id] = prepared.record
        machine = await clone(self._host, template, prepared)
        log.info("%s: cloned warm in %.2f s", record.vm_id, time.monotonic() - began)
        return prepared.record, machine

    async def _clear(self, record: MachineRecord) -> MachineRecord:
        """Nothing is left of a try. Its uid may be another machine's by now: it gets a free one."""
        fresh = record.updated(uid=self._registry.free_uid())
        self._registry.records[record.vm_id] = fresh
        await run_shielded(clear(self._host, fresh))
        return fresh

    async def _failed(self, template: Template, record: MachineRecord, error: Exception) -> None:
        self._failures += 1
        words = _words(error)
        log.warning("%s boots, since it could not be cloned warm: %s", record.vm_id, words)
        if self._failures >= _FAILURES:
            log.warning("throwing a template of warm browser machines away: its clones fail")
            self._failures = 0
            await asyncio.to_thread(self._templates.discard, template)

    async def _fitting(self, shape: Shape) -> Template | None:
        for template in await asyncio.to_thread(self._templates.all):
            with suppress(PolydevError):
                if await fits_now(self._host, template, shape):
                    return template
        return None

    async def _look(self, *, is_asked: bool) -> None:
        """Make a template or one more clone that waits, if that is due; end clones that wait for
        nothing. Raises: what making one raises."""
        shape = await asyncio.to_thread(self._templates.wanted)
        self._note_what_goes_on()
        template = None if shape is None else await self._fitting(shape)
        is_short = await asyncio.to_thread(self._room.is_short)
        await self._waiting.keep(None if is_short else template)
        if shape is None:
            return
        is_due = self._is_refill_due(shape) if template else is_asked or self._is_making_due()
        if not is_due:
            return
        if lacks := await asyncio.to_thread(self._room.lacks, shape):
            self._why_not = lacks
        elif template is None:
            await self._make(shape)
        else:
            await self._refill(template)

    def _note_what_goes_on(self) -> None:
        for record in self._registry.records.values():
            if record.labels.get(PURPOSE) == WAITS:
                continue
            if not record.state.is_settled:
                self._quiet_since_s = self._still_since_s = time.monotonic()
            elif record.machine_kind is MachineKind.BROWSER:
                self._quiet_since_s = time.monotonic()

    def _is_making_due(self) -> bool:
        """Whether nothing has been going on for a while."""
        now_s = time.monotonic()
        return now_s >= max(self._quiet_since_s + self._policy.quiet_s, self._not_before_s)

    def _is_refill_due(self, shape: Shape) -> bool:
        due_s = max(self._still_since_s + self._policy.refill_quiet_s, self._refill_not_before_s)
        if self._waiting.count >= self._policy.waiting or time.monotonic() < due_s:
            return False
        busy = self._busy_processors()
        return not busy or busy + shape.vcpus <= self._policy.processors

    def _busy_processors(self) -> int:
        """Those of all logins that are under way, or about to be."""
        records, kept = self._registry.records.values(), self._waiting.reserved
        return sum(
            it.vcpus
            for it in records
            if it.machine_kind is MachineKind.BROWSER
            and (it.labels.get(PURPOSE) != WAITS or it.vm_id in kept)
            and (it.vm_id in self._registry.running or it.state is MachineState.CREATING)
        )

    async def _refill(self, template: Template) -> None:
        """Have one more clone wait, unless machines have all the memory that they may have. That it
        cannot be is no reason not to make templates."""
        memory_mib, others = template.described.shape.memory_mib, self._registry.memory_mib()
        try:
            with self._host.admission.admitted("a clone that waits", memory_mib, others):
                pass
            await self._while_there_is_room(self._waiting.make(template, _MAKE_LIMIT_S))
        except Exception as error:
            self._why_not = _words(error)
            self._refill_not_before_s = time.monotonic() + self._policy.refill_pause_s
            if not isinstance(error, (NoCapacity, MachineNotReady)):
                log.warning("no clone waits for a login: %s", _words(error))

    async def _make(self, shape: Shape) -> None:
        """Make a template."""
        making = make(self._host, self._registry, self._templates, shape, _MAKE_LIMIT_S)
        self._making_since_s = time.monotonic()
        try:
            await self._while_there_is_room(making)
        finally:
            self._making_since_s = None
        self._failures, self._pause_s, self._why_not = 0, _FIRST_PAUSE_S, ""

    async def _while_there_is_room(self, making: Coroutine[Any, Any, object]) -> None:
        """Do it, unless memory runs short meanwhile, or it is made to give way.

        Raises: MachineNotReady, NoCapacity, and what it raises.
        """
        task = asyncio.create_task(making)
        try:
            while not (await asyncio.wait({task}, timeout=self._policy.look_s))[0]:
                if await asyncio.to_thread(self._room.is_short):
                    raise MachineNotReady("the host ran short of memory meanwhile")
            if task.cancelled():
                raise NoCapacity("a machine needed its memory meanwhile")
            task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})


def _words(error: Exception) -> str:
    return as_polydev_error(error).message if str(error) else "it took too long"
