"""What an item of the set-up is, and how items are looked at, made and taken back, in order.

`command.py` calls this with the items of all concerns. It must not know any of them.
"""

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
    """How an item stands."""

    OK = "ok"
    CHANGED = "changed"
    """It was made so just now."""
    MISSING = "missing"
    """It is not as it must be; `hint` says what to do."""
    ADVICE = "advice"
    """Polydev runs; whoever runs this machine may want it otherwise."""


@dataclass(frozen=True, slots=True)
class Status:
    """What was found about an item, or done to it."""

    name: str
    state: State
    message: str
    hint: str = ""

    @property
    def is_well(self) -> bool:
        """Whether Polydev can rely on it."""
        return self.state is not State.MISSING

    def as_json(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}


class Resource(Protocol):
    """Something that must be so on a host. Its methods block: each is called in a thread.

    Cut anywhere, `make` and `undo` are right again when they are called once more.
    """

    @property
    def name(self) -> str: ...

    def check(self) -> Status:
        """How it stands. Changes nothing."""

    def apply(self) -> None:
        """Make it so. Nothing happens where only a person can (`look` says what). Raises
        PolydevError."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Take back what `make` made; what people put in goes only with `purge`.

        Returns what stays, in words. Done also when it was never made. Raises PolydevError.
        """


async def check(items: Sequence[Resource]) -> AsyncIterator[Status]:
    """How each item stands."""
    for item in items:
        yield await _beside(partial(_looked_at, item))


async def apply(items: Sequence[Resource]) -> AsyncIterator[Status]:
    """Make each item so. One that cannot be keeps no other from being made."""
    for item in items:
        yield await _beside(partial(_wait_until_ready, item))


async def revert(items: Sequence[Resource], *, purge: bool) -> list[str]:
    """Take everything back, last first; what stays, in words. Raises PolydevError."""
    kept: list[str] = []
    for item in reversed(items):
        kept += await _beside(partial(item.revert, purge=purge))
    return kept


async def _beside(call: Callable[[], T]) -> T:
    """What a blocking call returns. Nothing waits for it when this is cancelled (Ctrl-C): it ends
    with the process, cut anywhere, which items are made for. A pool's thread would be waited for,
    and a download may take a quarter of an hour."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
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
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await answer


def _looked_at(item: Resource) -> Status:
    try:
        return item.check()
    except PolydevError as error:
        return _failed(item, error)
    except OSError as error:
        return _not_done(item, error)


def _wait_until_ready(item: Resource) -> Status:
    before = _looked_at(item)
    if before.state is not State.MISSING:
        return before
    try:
        item.apply()
        after = item.check()
    except PolydevError as error:
        return _failed(item, error)
    except OSError as error:
        return _not_done(item, error)
    if after.state is State.OK:
        return Status(item.name, State.CHANGED, after.message)
    return after


def _failed(item: Resource, error: PolydevError) -> Status:
    return Status(item.name, State.MISSING, error.message, error.hint)


def _not_done(item: Resource, error: OSError) -> Status:
    """A file or folder that this machine does not let be read or written."""
    where = f"{error.filename}: " if error.filename else ""
    words = f"{where}{error.strerror or type(error).__name__}"
    return Status(item.name, State.MISSING, words, "Mend that, then run `polydev host setup` again")
