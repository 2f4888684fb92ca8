"""What the lines of a log are about: the session, machine, person, request at hand.

Whoever begins a piece of work says it once (`with about(session=...)`); `logging_setup.py` adds it
to every line that is logged within, also in tasks and threads that are started there. Ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_NOTHING: Mapping[str, str] = {}
_about: ContextVar[Mapping[str, str]] = ContextVar("polydev_log_context", default=_NOTHING)


@contextmanager
def about(**ids: str | None) -> Iterator[None]:
    """Have every line logged within carry these ids (`session`, `machine`, `person`, `request`,
    `operation`, `workflow`), besides those of the work around it."""
    before = _about.get()
    _about.set({**before, **{name: value for name, value in ids.items() if value}})
    try:
        yield
    finally:
        _about.set(before)


def note(**ids: str) -> None:
    """Add ids for the rest of the work at hand, which became known in the middle of it."""
    _about.set({**_about.get(), **ids})


def current() -> Mapping[str, str]:
    """What the work at hand is about."""
    return _about.get()
