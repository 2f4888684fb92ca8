"""Resources of the setup, and how to check, apply and revert them in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar, cast

from polydev.shared.errors import PolydevError

T = TypeVar("T")


class State(StrEnum):
    """State of a resource."""

    OK = "ok"
    CHANGED = "changed"
    """This run corrected it."""
    MISSING = "missing"
    """It is missing or wrong; `hint` says what to do."""
    ADVICE = "advice"
    """Polydev works, but the administrator may want to change it."""


@dataclass(frozen=True, slots=True)
class Status:
    """Result of checking or applying a resource."""

    name: str
    state: State
    message: str
    hint: str = ""

    @property
    def is_well(self) -> bool:
        """True if Polydev can rely on the resource."""
        return self.state is not State.MISSING

    def as_json(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}


class Resource(Protocol):
    """Something that a host needs. Methods block; each runs in a thread.

    After an interruption, calling `apply` or `revert` again completes it.
    """

    @property
    def name(self) -> str: ...

    def check(self) -> Status:
        """Check the resource. Changes nothing."""

    def apply(self) -> None:
        """Create or correct it. Does nothing where only an administrator can. Raises
        PolydevError."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Revert `apply`; user data is deleted only with `purge`.

        Returns descriptions of what stays. Raises PolydevError.
        """


async def check(resources: Sequence[Resource]) -> AsyncIterator[Status]:
    """Check each resource."""
    for resource in resources:
        yield await _in_daemon_thread(partial(_check, resource))


async def apply(resources: Sequence[Resource]) -> AsyncIterator[Status]:
    """Apply each resource. A failure does not stop the others."""
    for resource in resources:
        yield await _in_daemon_thread(partial(_wait_until_ready, resource))


async def revert(resources: Sequence[Resource], *, purge: bool) -> list[str]:
    """Revert all in reverse order. Returns what stays. Raises PolydevError."""
    remaining: list[str] = []
    for resource in reversed(resources):
        remaining += await _in_daemon_thread(partial(resource.revert, purge=purge))
    return remaining


async def _in_daemon_thread(call: Callable[[], T]) -> T:
    """Run a blocking call in a daemon thread.

    Ctrl-C must not wait for it: a download may take a quarter of an hour, and a thread of a pool
    would block the exit. Resources tolerate being interrupted.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await answer


def _check(resource: Resource) -> Status:
    try:
        return resource.check()
    except PolydevError as error:
        return _failed(resource, error)
    except OSError as error:
        return _os_failed(resource, error)


def _wait_until_ready(resource: Resource) -> Status:
    before = _check(resource)
    if before.state is not State.MISSING:
        return before
    try:
        resource.apply()
        after = resource.check()
    except PolydevError as error:
        return _failed(resource, error)
    except OSError as error:
        return _os_failed(resource, error)
    if after.state is State.OK:
        return Status(resource.name, State.CHANGED, after.message)
    return after


def _failed(resource: Resource, error: PolydevError) -> Status:
    return Status(resource.name, State.MISSING, error.message, error.hint)


def _os_failed(resource: Resource, error: OSError) -> Status:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or type(error).__name__}"
    hint = "Correct this, then run `polydev host setup` again"
    return Status(resource.name, State.MISSING, message, hint)
