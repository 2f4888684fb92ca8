"""Map exceptions to the wire: to a `Problem`, and to an HTTP status.

A foreign exception is logged, and reported without its text, which could contain anything. The
inverse is `error_translation` of the host agent's client.
"""

from __future__ import annotations

import errno
import logging

from polydev.shared.errors import DiskFull, Failed, PolydevError
from polydev.shared.host_protocol import Problem

log = logging.getLogger("polydev.hostagent")


def status_of(error: PolydevError) -> int:
    """Return the HTTP status of an error's kind.

    So TooLarge is a 422, and NotSignedIn and TooManyRequests are 403, unlike in the controller's
    API. Clients distinguish errors by their code.
    """
    kinds = PolydevError.__subclasses__()
    return next((kind.http_status for kind in kinds if isinstance(error, kind)), error.http_status)


def as_polydev_error(error: BaseException) -> PolydevError:
    """Convert any exception to a `PolydevError`; log foreign ones with their traceback."""
    if isinstance(error, PolydevError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return as_polydev_error(error.exceptions[0])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = error.filename or "the state folder"
        return DiskFull(
            f"No space left on the disk of {where}", hint="Free some space, then try again"
        )
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return Failed(
        f"Unexpected error in the host agent ({type(error).__name__})",
        hint="See the host agent's log",
    )


def problem_of(error: BaseException) -> Problem:
    """Return the wire form of an exception."""
    known = as_polydev_error(error)
    return Problem(code=known.code, message=known.message, hint=known.hint)
