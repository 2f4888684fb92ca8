"""The idle policy: a CLI machine that nobody uses, and that does nothing, is put to sleep.

`app.py` runs it beside the API; of several controllers the eldest does it. Nobody uses a machine
while no turn of a chat waits or goes on in it, no login uses it, and for the whole time nobody has
typed in a terminal of it, run a program in it, or looked into its files (`waking.py` notes these).
It does nothing if its host saw it use next to no processor in any minute of that time. An agent of
a chat that only waits is not in the way: its stream is cut, and the next turn begins another one,
which takes the conversation up again.

What is seen here is only a reason to ask: `MachineRequests.hibernate` looks at it again in the
transaction that claims the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.store.queries.system import controllers
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.machine_commands import MachineCommands
from polydev.controller.workflows.machines.machines import MachineOperations
from polydev.shared.domain import VmId, now
from polydev.shared.errors import MachineBusy, PolydevError
from polydev.shared.host_protocol import Usage, UsageSample

log = logging.getLogger("polydev.controller.workflows")

_LONGEST_PERIOD_S = 30.0
_LOOKS_EACH_IDLE_TIME = 10
_HOST_LIMIT_S = 5.0
_MINUTE_S = 60
_KEPT = timedelta(minutes=55)
"""Hosts keep the samples of an hour: so much of a longer idle time can be looked at."""


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """One round is `once`; `run` makes them for ever."""

    database: Database
    machines: MachineOperations
    commands: MachineCommands
    executor_id: str

    async def run(self) -> None:
        """Rounds until cancelled, if machines are to sleep at all. What goes wrong in one is tried
        again in the next."""
        idle_s = self.machines.settings.hibernate_idle_s
        if not idle_s:
            return
        while True:
            await asyncio.sleep(min(_LONGEST_PERIOD_S, idle_s / _LOOKS_EACH_IDLE_TIME))
            try:
                if await self._is_its_turn():
                    await self.run_once()
            except PolydevError as error:
                log.warning("looking for idle machines: %s", error.line())
            except Exception:
                log.exception("looking for idle machines failed")

    async def run_once(self) -> None:
        """Put to sleep what may be. A host that does not answer is passed over."""
        idle = timedelta(seconds=self.machines.settings.hibernate_idle_s)
        since = now() - idle
        async with self.database.read() as connection:
            unused = await hibernation.list_unused_since(connection, since)
        for vm_id in unused:
            try:
                if await self._does_nothing(vm_id, since):
                    cause = Actor.for_controller("idle", f"not used for {format_duration(idle)}")
                    await self.commands.hibernate(cause, vm_id, since)
            except MachineBusy as error:
                log.debug("%s stays awake: %s", vm_id, error.message)
            except (PolydevError, TimeoutError) as error:
                log.info("%s stays awake: %s", vm_id, error)

    async def _is_its_turn(self) -> bool:
        async with self.database.read() as connection:
            eldest = await controllers.find_oldest(connection)
        return eldest in (None, self.executor_id)

    async def _does_nothing(self, vm_id: VmId, since: datetime) -> bool:
        async with self.database.read() as connection:
            machine = await machines.get(connection, vm_id, None)
        async with asyncio.timeout(_HOST_LIMIT_S):
            usage = await self.machines.hosts.of(machine.host_id).usage(vm_id)
        return is_idle(usage, max(since, now() - _KEPT), self.machines.settings.hibernate_cpu)


def is_idle(usage: Usage, since: datetime, cores: float) -> bool:
    """Whether a machine used fewer cores on average in each minute since then. False if its host
    has not looked for so long."""
    samples = usage.samples
    if not samples or samples[0].at > since + timedelta(seconds=3 * usage.period_s):
        return False
    return _busiest([it for it in samples if it.at >= since] or samples[-1:]) < cores


def _busiest(samples: Sequence[UsageSample]) -> float:
    """Cores on average, in the minute in which that is the most."""
    minutes: defaultdict[int, list[float]] = defaultdict(list)
    for it in samples:
        minutes[int(it.at.timestamp()) // _MINUTE_S].append(it.cpu)
    return max(sum(found) / len(found) for found in minutes.values())


def format_duration(time: timedelta) -> str:
    """`30 minutes`, `90 seconds`."""
    seconds = round(time.total_seconds())
    if seconds % 3600 == 0 and seconds:
        count, unit = seconds // 3600, "hour"
    elif seconds % 60 == 0 and seconds:
        count, unit = seconds // 60, "minute"
    else:
        count, unit = seconds, "second"
    return f"{count} {unit}{'' if count == 1 else 's'}"
