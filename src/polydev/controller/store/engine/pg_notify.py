"""Word of changes between controllers, over PostgreSQL's LISTEN and NOTIFY.

`Postgresql` makes one for its database. A write wakes its own process at once, and the others by a
notification; many writes in a moment are one notification, since NOTIFY holds up everybody's
commits. A notification is lost if its controller is killed in that moment: what that controller
was doing is then taken over by another one, whose writes are told again.
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
_GATHER_S = 0.02
"""How long writes are gathered into one notification."""
_AGAIN_S = (0.2, 0.5, 1.0, 2.0)


class PgChangeBus(ChangeBus):
    """Changes that any controller makes. Its connections open with the first change or waiter."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self._parameters = dict(parameters)
        self._myself = uuid.uuid4().hex
        self._untold = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def tell(self) -> None:
        super().tell()
        self._untold.set()
        self._begin()

    def next(self) -> asyncio.Event:
        self._begin()
        return super().next()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._untold.is_set():
            with contextlib.suppress(psycopg.Error):
                async with await self._connect() as connection:
                    await self._notify(connection)

    def _begin(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._kept_up(self._listen)),
                loop.create_task(self._kept_up(self._notify_all)),
            ]

    async def _kept_up(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        """Do work that lasts, over a new connection whenever one is lost."""
        waits = itertools.chain(_AGAIN_S, itertools.repeat(_AGAIN_S[-1]))
        while True:
            try:
                async with await self._connect() as connection:
                    waits = itertools.chain(_AGAIN_S, itertools.repeat(_AGAIN_S[-1]))
                    await work(connection)
            except psycopg.Error as error:
                log.warning("no word of other controllers' changes for now: %s", first_line(error))
            await asyncio.sleep(next(waits))

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {_CHANNEL}")
        super().tell()  # what happened before was not heard
        async for notification in connection.notifies():
            if notification.payload != self._myself:
                super().tell()

    async def _notify_all(self, connection: Connection) -> None:
        while True:
            await self._untold.wait()
            await asyncio.sleep(_GATHER_S)
            await self._notify(connection)

    async def _notify(self, connection: Connection) -> None:
        self._untold.clear()
        try:
            await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, self._myself))
        except BaseException:
            self._untold.set()
            raise

    async def _connect(self) -> Connection:
        opening = asyncio.create_task(
            psycopg.AsyncConnection.connect(**self._parameters, autocommit=True)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # One that is given up half way keeps a place on the server for a minute, and others
            # waiting: DROP DATABASE, for one.
            with contextlib.suppress(psycopg.Error):
                await (await opening).close()
            raise


def first_line(error: BaseException) -> str:
    """The first line of what PostgreSQL says: it names hosts and users, never a password."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(char if char.isprintable() else " " for char in lines[0])
