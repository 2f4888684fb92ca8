"""Notify other controllers of changes with PostgreSQL's LISTEN and NOTIFY.

A commit wakes its own process directly, and other controllers by a notification. Commits within a
short time share one notification, since NOTIFY serializes all commits. A notification is lost if
its controller is killed in that time; another controller then takes over its work and notifies
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psycopg

from polydev.controller.store.engine.change_bus import ChangeBus

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

log = logging.getLogger("polydev.controller.store")

_CHANNEL = "polydev_change"
_BATCH_S = 0.02
"""Commits within this time share one notification."""
_RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0)


class PgChangeBus(ChangeBus):
    """Changes made by any controller. Connects at the first change or waiter."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self._parameters = dict(parameters)
        self._own_id = uuid.uuid4().hex
        self._pending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def publish(self) -> None:
        super().publish()
        self._pending.set()
        self._begin()

    def next_change(self) -> asyncio.Event:
        self._begin()
        return super().next_change()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pending.is_set():
            with contextlib.suppress(psycopg.Error):
                async with await self._connect() as connection:
                    await self._notify(connection)

    def _begin(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._keep_running(self._listen)),
                loop.create_task(self._keep_running(self._notify_all)),
            ]

    async def _keep_running(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        """Keep `work` running, on a new connection whenever one is lost."""
        waits = itertools.chain(_RETRY_DELAYS_S, itertools.repeat(_RETRY_DELAYS_S[-1]))
        while True:
            try:
                async with await self._connect() as connection:
                    waits = itertools.chain(_RETRY_DELAYS_S, itertools.repeat(_RETRY_DELAYS_S[-1]))
                    await work(connection)
            except psycopg.Error as error:
                log.warning(
                    "cannot receive other controllers' changes for now: %s", first_line(error)
                )
            await asyncio.sleep(next(waits))

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {_CHANNEL}")
        super().publish()  # changes before LISTEN were missed
        async for notification in connection.notifies():
            if notification.payload != self._own_id:
                super().publish()

    async def _notify_all(self, connection: Connection) -> None:
        while True:
            await self._pending.wait()
            await asyncio.sleep(_BATCH_S)
            await self._notify(connection)

    async def _notify(self, connection: Connection) -> None:
        self._pending.clear()
        try:
            await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, self._own_id))
        except BaseException:
            self._pending.set()
            raise

    async def _connect(self) -> Connection:
        connecting = asyncio.create_task(
            psycopg.AsyncConnection.connect(**self._parameters, autocommit=True)
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # A half-open connection would occupy the server for a minute, and block others, such as
            # DROP DATABASE.
            with contextlib.suppress(psycopg.Error):
                await (await connecting).close()
            raise


def first_line(error: BaseException) -> str:
    """Return the first line of PostgreSQL's message, which never holds a password."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(char if char.isprintable() else " " for char in lines[0])
