"""Leases of controllers that share a database, and failover when one of them dies.

Each controller renews its lease every two seconds. A controller with unfinished workflows and no
valid lease is dead, and the others take over its workflows. In turn, a controller that fails to
renew its lease in time exits, before another one may take over.

    renewed ──2 s── renewed ──2 s── renewed ───────────── 9 s: this process exits
                                            ───────────── 10 s: others take over (database clock)

A stopped or starved process may look at the clock too late. So a thread watches the lease, and
every workflow step calls `Lease.check` before it starts.
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
"""EX_TEMPFAIL of sysexits.h: a restart may help."""

_EXIT_MARGIN_S = 1.0
"""Time between the exit of this process and the earliest takeover."""
_RENEW_LIMIT_S = 3.0
"""Time limit of one renewal. It leaves time for another attempt."""
_DATABASE_ERRORS = (PolydevError, SQLAlchemyError, OSError, TimeoutError)


_ending = threading.Lock()


def exit_now() -> NoReturn:
    """Exit the process immediately. A second caller blocks until the exit."""
    _ending.acquire()
    log.critical(
        "the lease of this controller expired, because the process was stopped or the database was "
        "unreachable; others may have taken over its workflows, so it exits. Restart it"
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(EXIT_CODE)


@dataclass(slots=True)
class Lease:
    """Lease of this controller, valid inside `hold`."""

    database: Database
    key_ids: Set[str] = frozenset()
    """Ids of the encryption keys that this controller has."""
    on_lapse: Callable[[], None] = exit_now
    executor_id: str = field(default_factory=new_executor_id, init=False)
    _valid_until_s: float = field(default=float("inf"), init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False)

    def check(self) -> None:
        """Call `on_lapse` if the lease is not valid."""
        if _clock_s() >= self._valid_until_s:
            self.on_lapse()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lease during the block, then release it.

        Without the release, others would wait for its expiry.
        """
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
            with suppress(*_DATABASE_ERRORS):  # it expires by itself
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
                log.warning("cannot renew the lease: %s", type(error).__name__)
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
    """Finds dead controllers and takes over their workflows."""

    database: Database
    engine: Engine

    async def run(self) -> None:
        """Poll every second until cancelled."""
        while True:
            try:
                await self.run_once()
            except Exception as error:  # no error may end the polling
                log.warning("cannot check for dead controllers: %s", type(error).__name__)
            await asyncio.sleep(POLL_S)

    async def run_once(self) -> None:
        """Check once. One of the live controllers claims a dead one's workflows.

        If it dies before the end, another one repeats the takeover once the claim has expired. If
        two take over concurrently, the engine requeues each workflow only once.
        """
        # Executors first: a new executor has its lease before its first workflow.
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
    """Run the engine in this context, and take over workflows of dead controllers.

    Without a shared database this happens once, at start.
    """
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
    """Read a clock that also advances while the process or the computer is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
