"""Map exceptions to the wire: to a `Problem`, and to an HTTP status.

A foreign exception is logged, and reported without its text, which could contain anything.
"""

from __future__ import annotations

import errno
import logging

from polydev.shared.errors import (
    Conflict,
    DiskFull,
    Failed,
    Invalid,
    Missing,
    PolydevError,
    Refused,
    Unavailable,
)
from polydev.shared.host_protocol import Problem

log = logging.getLogger("polydev.hostagent")

_STATUS: tuple[tuple[type[PolydevError], int], ...] = (
    (Invalid, 422),
    (Refused, 403),
    (Missing, 404),
    (Conflict, 409),
    (Unavailable, 503),
    (Failed, 502),
)


def status_of(error: PolydevError) -> int:
    """Return the HTTP status of an error's kind."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def as_polydev_error(error: BaseException) -> PolydevError:
    """Convert any exception to a `PolydevError`; log foreign ones with their traceback."""
    if isinstance(error, PolydevError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return as_polydev_error(error.exceptions[0])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = error.filename or "the state folder"
        return DiskFull(f"No space left on the disk of {where}", hint="Free some space; try again")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return Failed(
        f"The host agent met an unexpected {type(error).__name__}",
        hint="Its log has the details",
    )


def problem_of(error: BaseException) -> Problem:
    """Return the wire form of an exception."""
    known = as_polydev_error(error)
    return Problem(code=known.code, message=known.message, hint=known.hint)
