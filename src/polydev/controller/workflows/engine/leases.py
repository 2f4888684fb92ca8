"""Leases: several controllers over one database, and what is done when one of them dies.

`app.py` uses it where the database is shared. Each controller holds a lease that it renews every
second or two; whoever has unfinished workflows and no valid lease is dead, and the others go on
with its workflows. The other side of that bargain: a controller that has not renewed its lease in
time ends at once, whatever it is doing, before anybody else may begin.

    renewed ──2 s── renewed ──2 s── renewed ───────────── 9 s: this process ends itself
                                            ───────────── 10 s: others take over (database's time)

A process that was stopped or starved cannot be trusted to look at the clock in time: a thread of
its own watches it, and every step of a workflow asks `Lease.check` before it begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from polydev import __version__
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.system import controllers
from polydev.controller.workflows.engine.engine import Engine, new_executor_id
from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.workflows")

VALID_S = 10.0
PERIOD_S = 2.0
POLL_S = 1.0
EXIT_CODE = 75
"""sysexits.h has it as EX_TEMPFAIL: starting again is right."""

_EXIT_MARGIN_S = 1.0
"""How long before the others may begin this process ends itself."""
_RENEW_LIMIT_S = 3.0
"""Of the database, to one renewal: there is time for another one."""
_DATABASE_ERRORS = (PolydevError, SQLAlchemyError, OSError, TimeoutError)


_ending = threading.Lock()


def exit_now() -> NoReturn:
    """End this process without letting anything in it go on: a second caller waits for the end."""
    _ending.acquire()
    log.critical(
        "this controller's lease has run out (it was stopped, or the database was away): others "
        "may have taken over its workflows, so it ends now and can be started again"
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(EXIT_CODE)


@dataclass(slots=True)
class Lease:
    """This controller's own lease: held from `held`'s beginning to its end."""

    database: Database
    key_ids: Set[str] = frozenset()
    """The encryption keys that it was started with."""
    on_lapse: Callable[[], None] = exit_now
    executor_id: str = field(default_factory=new_executor_id, init=False)
    _valid_until_s: float = field(default=float("inf"), init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False)

    def check(self) -> None:
        """Return if the lease is valid; otherwise `lapse`."""
        if _clock_s() >= self._valid_until_s:
            self.on_lapse()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lease, and give it back at the end, so that others need not wait for it."""
        asked_s = _clock_s()
        async with self.database.write() as connection:
            await controllers.begin_lease(
                connection, self.executor_id, VALID_S, __version__, self.key_ids
            )
        self._valid_until_s = asked_s + VALID_S - _EXIT_MARGIN_S
        watching = threading.Thread(target=self._watch, name="polydev-lease", daemon=True)
        watching.start()
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            await _cancel(renewing)
            self._released.set()
            with suppress(*_DATABASE_ERRORS):  # then it runs out by itself
                async with self.database.write() as connection:
                    await controllers.end_leases(connection, {self.executor_id})

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            asked_s = _clock_s()
            try:
                async with asyncio.timeout(_RENEW_LIMIT_S), self.database.write() as connection:
                    valid = await controllers.renew_lease(connection, self.executor_id, VALID_S)
            except _DATABASE_ERRORS as error:
                log.warning("the lease is not renewed: %s", type(error).__name__)
                continue
            if not valid:
                self._valid_until_s = 0
                self.check()
            self._valid_until_s = asked_s + VALID_S - _EXIT_MARGIN_S

    def _watch(self) -> None:
        while not self._released.wait(max(self._valid_until_s - _clock_s(), 0.01)):
            self.check()


@dataclass(frozen=True, slots=True)
class FailoverMonitor:
    """Looks for controllers that have died, and goes on with what they had begun."""

    database: Database
    engine: Engine

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            try:
                await self.run_once()
            except Exception as error:  # whatever it is, it must not end the looking
                log.warning("cannot look for dead controllers: %s", type(error).__name__)
            await asyncio.sleep(POLL_S)

    async def run_once(self) -> None:
        """Look once. Of several survivors one goes on with a dead controller's workflows; should
        it die in the middle, another one begins anew when its claim has run out. Should two do it
        at once after all, the engine gives each workflow back once."""
        # Looked at first: an executor that begins meanwhile has its lease before its workflows.
        busy = await self.engine.list_executors()
        async with self.database.read() as connection:
            dead = busy | await controllers.list_expired(connection)
            dead -= await controllers.list_alive(connection)
        if not dead:
            return
        async with self.database.write() as connection:
            claimed = await controllers.claim(connection, dead, VALID_S, __version__)
        if claimed:
            await self.engine.take_over(claimed)
            async with self.database.write() as connection:
                await controllers.delete_claimed(connection, claimed)


@asynccontextmanager
async def run_engine(engine: Engine, lease: Lease, *, shared: bool) -> AsyncIterator[None]:
    """The engine, started, with the workflows of dead controllers taken over: once where this
    controller is the only one, and whenever another dies where the database is shared."""
    async with AsyncExitStack() as ending:
        if shared:
            await ending.enter_async_context(lease.hold())
        ending.push_async_callback(engine.stop)
        await engine.start()
        if shared:
            looking = asyncio.create_task(FailoverMonitor(lease.database, engine).run())
            ending.push_async_callback(_cancel, looking)
        else:
            await engine.take_over(await engine.list_executors())
        yield


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _clock_s() -> float:
    """Goes on while the process is stopped, and while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
