"""The idle policy: hibernate unused CLI machines.

Only the oldest live controller runs it. A machine is unused if no chat turn is queued or running in
it, no login uses it, and its user has not typed in its terminals, run programs in it or browsed its
files for the whole idle time (`resume_on_use.py` records that). Its host must also have seen almost
no processor use in any minute of that time. An idle chat agent does not count: it is disconnected,
and the next turn starts a new one that loads the conversation.

These checks are only a hint. `MachineCommands.hibernate` checks again in the transaction that
claims the machine.
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
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import VmId, now
from polydev.shared.errors import MachineBusy, PolydevError
from polydev.shared.host_protocol import Usage, UsageSample

log = logging.getLogger("polydev.controller.workflows")

_LONGEST_PERIOD_S = 30.0
_LOOKS_EACH_IDLE_TIME = 10
_HOST_LIMIT_S = 5.0
_MINUTE_S = 60
_MAX_WINDOW = timedelta(minutes=55)
"""Longest time to check: hosts store samples for one hour."""


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """Hibernates idle machines periodically."""

    database: Database
    machines: MachineOperations
    commands: MachineCommands
    executor_id: str

    async def run(self) -> None:
        """Run until cancelled, unless hibernation is switched off. Errors are retried next time."""
        idle_s = self.machines.settings.hibernate_idle_s
        if not idle_s:
            return
        while True:
            await asyncio.sleep(min(_LONGEST_PERIOD_S, idle_s / _LOOKS_EACH_IDLE_TIME))
            try:
                if await self._is_its_turn():
                    await self.run_once()
            except PolydevError as error:
                log.warning("cannot check for idle machines: %s", error.line())
            except Exception:
                log.exception("checking for idle machines failed")

    async def run_once(self) -> None:
        """Hibernate all idle machines. Skip hosts that do not answer."""
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
                log.debug("not hibernating %s: %s", vm_id, error.message)
            except (PolydevError, TimeoutError) as error:
                log.info("not hibernating %s: %s", vm_id, error)

    async def _is_its_turn(self) -> bool:
        async with self.database.read() as connection:
            eldest = await controllers.find_oldest(connection)
        return eldest in (None, self.executor_id)

    async def _does_nothing(self, vm_id: VmId, since: datetime) -> bool:
        async with self.database.read() as connection:
            machine = await machines.get(connection, vm_id, None)
        async with asyncio.timeout(_HOST_LIMIT_S):
            usage = await self.machines.hosts.client(machine.host_id).usage(vm_id)
        return is_idle(usage, max(since, now() - _MAX_WINDOW), self.machines.settings.hibernate_cpu)


def is_idle(usage: Usage, since: datetime, cores: float) -> bool:
    """Check that a machine used fewer cores in every minute since then.

    False if its host has no samples that old.
    """
    samples = usage.samples
    if not samples or samples[0].at > since + timedelta(seconds=3 * usage.period_s):
        return False
    return _busiest([it for it in samples if it.at >= since] or samples[-1:]) < cores


def _busiest(samples: Sequence[UsageSample]) -> float:
    """Return the average number of cores in the busiest minute."""
    minutes: defaultdict[int, list[float]] = defaultdict(list)
    for it in samples:
        minutes[int(it.at.timestamp()) // _MINUTE_S].append(it.cpu)
    return max(sum(found) / len(found) for found in minutes.values())


def format_duration(time: timedelta) -> str:
    """Format a duration: `30 minutes`, `90 seconds`."""
    seconds = round(time.total_seconds())
    if seconds % 3600 == 0 and seconds:
        count, unit = seconds // 3600, "hour"
    elif seconds % 60 == 0 and seconds:
        count, unit = seconds // 60, "minute"
    else:
        count, unit = seconds, "second"
    return f"{count} {unit}{'' if count == 1 else 's'}"
