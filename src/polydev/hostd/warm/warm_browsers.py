"""Browser machines whose browser is up when they are asked for: clones of a template.

`machines.py` asks for one before it boots any browser machine, and boots when there is none to be
had, for whatever reason. In the background a template is made for the machines that are asked for,
when nothing else is going on and the host has the memory; one that fails its clones is thrown away.
`server.py` and `diagnosis.py` tell how it stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.domain import MachineKind, MachineState
from polydev.errors import MachineNotReady, PolydevError
from polydev.hostapi import WarmShape, WarmView
from polydev.hostd.machine import RunningMachine, clear, prepare
from polydev.hostd.problems import as_polydev_error
from polydev.hostd.record import MachineRecord
from polydev.hostd.roster import Roster
from polydev.hostd.site import Site
from polydev.hostd.uncut import to_its_end
from polydev.hostd.warm.cloning import clone
from polydev.hostd.warm.making import fits_now, make
from polydev.hostd.warm.room import Room
from polydev.hostd.warm.templates import Shape, Template, Templates

log = logging.getLogger("polydev.hostd")

_FAILURES = 2
"""So many clones in a row may fail before their template is thrown away."""
_SHARE = 1 / 2
"""Of the time that a machine may take: for the clone, so that there is enough left to boot."""
_MAKE_LIMIT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 300.0, 6 * 3600.0
"""After a template that could not be made; twice as long each time."""
_SETTLED = frozenset(
    {
        MachineState.RUNNING,
        MachineState.STOPPED,
        MachineState.HIBERNATED,
        MachineState.FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class WarmPolicy:
    """What the settings say."""

    root: Path
    """Where the template lies."""
    room: Room
    is_on: bool = True
    quiet_s: float = 60.0
    """How long nothing was made or changed, and no browser machine ran, before one is made."""
    look_s: float = 5.0


class WarmBrowsers:
    """Of one host."""

    def __init__(self, site: Site, roster: Roster, policy: WarmPolicy | None) -> None:
        """`policy`: None where machines are only booted."""
        self._site = site
        self._roster = roster
        here = site.machines_dir.parent
        self._policy = policy or WarmPolicy(here / "warm", Room(here), is_on=False)
        self._room = self._policy.room
        self._templates = Templates(self._policy.root)
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._not_before_s = 0.0
        self._quiet_since_s = time.monotonic()
        self._asked = asyncio.Event()
        self._making_since_s: float | None = None
        self._why_not = ""

    # What is asked ---------------------------------------------------------------------------

    async def take(
        self, record: MachineRecord, limit_s: float
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """A clone that is the machine of this record, which is kept but has nothing yet.

        None when there is none to be had: the record is as it was then, and nothing is left.
        Takes at most half of `limit_s`.
        """
        if not self._policy.is_on or record.machine_kind is not MachineKind.BROWSER:
            return None
        shape = Shape.of(record)
        await asyncio.to_thread(self._templates.want, shape)
        template = await self._fitting(shape)
        if template is None:
            return None
        try:
            async with asyncio.timeout(limit_s * _SHARE):
                made = await self._cloned(record, template)
        except Exception as error:
            await to_its_end(clear(self._site, record))
            await self._failed(template, record, error)
            return None
        self._failures = 0
        return made

    async def ask(self, shape: WarmShape) -> None:
        """Have a template made as soon as there is room, however busy the host is."""
        await asyncio.to_thread(self._templates.want, Shape(**shape.model_dump()))
        self._not_before_s = 0.0
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
            return WarmView(state="ready", words=f"a template of {size_mib:.0f} MiB")
        return WarmView(state="none", words=self._why_not or "waiting for a quiet moment")

    async def run(self) -> None:
        """Make templates when they are due, until cancelled."""
        key = await asyncio.to_thread(self._site.memory_keys.known) if self._policy.is_on else None
        await asyncio.to_thread(self._templates.clean, key.id if key else None)
        if not self._policy.is_on:
            return
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._policy.look_s):
                    await self._asked.wait()
            try:
                await self._look(is_asked=self._asked.is_set())
            except Exception as error:
                log.warning("no template of warm browser machines: %s", as_polydev_error(error))
                self._why_not = f"the last could not be made: {as_polydev_error(error).message}"
                self._not_before_s = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._asked.clear()

    # How it is done --------------------------------------------------------------------------

    async def _cloned(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine]:
        began = time.monotonic()
        prepared = await to_its_end(prepare(self._site, record, fresh=False))
        self._roster.records[record.vm_id] = prepared.record
        machine = await clone(self._site, template, prepared)
        log.info("%s: cloned warm in %.2f s", record.vm_id, time.monotonic() - began)
        return prepared.record, machine

    async def _failed(self, template: Template, record: MachineRecord, error: Exception) -> None:
        self._roster.records[record.vm_id] = record
        self._failures += 1
        words = as_polydev_error(error).message if str(error) else "it took too long"
        log.warning("%s boots, since it could not be cloned warm: %s", record.vm_id, words)
        if self._failures >= _FAILURES:
            log.warning("throwing a template of warm browser machines away: its clones fail")
            self._failures = 0
            await asyncio.to_thread(self._templates.discard, template)

    async def _fitting(self, shape: Shape) -> Template | None:
        for template in await asyncio.to_thread(self._templates.all):
            with suppress(PolydevError):
                if await fits_now(self._site, template, shape):
                    return template
        return None

    async def _look(self, *, is_asked: bool) -> None:
        """Make a template if one is due. Raises: what making one raises."""
        shape = await asyncio.to_thread(self._templates.wanted)
        if not is_asked and not self._is_quiet():
            return
        if shape is None or time.monotonic() < self._not_before_s:
            return
        if await self._fitting(shape) is not None:
            return
        if lacks := await asyncio.to_thread(self._room.lacks, shape):
            self._why_not = lacks
            return
        await self._make(shape)

    def _is_quiet(self) -> bool:
        """Whether nothing has been going on for a while."""
        for record in self._roster.records.values():
            if record.state not in _SETTLED or record.machine_kind is MachineKind.BROWSER:
                self._quiet_since_s = time.monotonic()
        return time.monotonic() - self._quiet_since_s >= self._policy.quiet_s

    async def _make(self, shape: Shape) -> None:
        """Make one, unless memory runs short meanwhile."""
        self._making_since_s = time.monotonic()
        making = asyncio.create_task(
            make(self._site, self._roster, self._templates, shape, _MAKE_LIMIT_S)
        )
        try:
            while not (await asyncio.wait({making}, timeout=self._policy.look_s))[0]:
                if await asyncio.to_thread(self._room.is_short):
                    raise MachineNotReady("the host ran short of memory meanwhile")
            making.result()
        finally:
            making.cancel()
            await asyncio.wait({making})
            self._making_since_s = None
        self._failures, self._pause_s, self._why_not = 0, _FIRST_PAUSE_S, ""
