"""Log context: the ids of the session, machine, user and request at hand.

`with bound(session=...)` adds ids to every line that is logged in the block, including its tasks
and threads. Ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_NOTHING: Mapping[str, str] = {}
_ids: ContextVar[Mapping[str, str]] = ContextVar("polydev_log_context", default=_NOTHING)


@contextmanager
def bound(**ids: str | None) -> Iterator[None]:
    """Add ids, such as `session` or `machine`, to every line of the block."""
    before = _ids.get()
    _ids.set({**before, **{name: value for name, value in ids.items() if value}})
    try:
        yield
    finally:
        _ids.set(before)


def bind(**ids: str) -> None:
    """Add ids to every line of the rest of the current block."""
    _ids.set({**_ids.get(), **ids})


def current() -> Mapping[str, str]:
    """Ids of the current context."""
    return _ids.get()
