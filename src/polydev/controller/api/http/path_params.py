"""Validate ids, times and short texts in requests.

Anything malformed is answered with 422 before it reaches the database, which would refuse it in
its own way (NUL characters) or search in vain.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, StringConstraints

ID_PATTERN = r"^[A-Za-z0-9_.:@-]+$"
MAX_ID = 64

_VM_ID = "vm-5e3c5f0a-2f7b-4f0e-9c3d-6a1b2c3d4e5f"
_SESSION_ID = "0b1f6a52-8d1e-4f6d-9a55-3c1d0e7f2b11"

IdText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID, pattern=ID_PATTERN)]
"""An id in a body or a query."""

IdInPath = Annotated[str, Path(min_length=1, max_length=MAX_ID, pattern=ID_PATTERN)]
"""An id in a path, under the name of the function's parameter."""

SessionIdInPath = Annotated[
    str,
    Path(
        alias="sessionId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="Id of the connect session",
        examples=[_SESSION_ID],
    ),
]
VmIdInPath = Annotated[
    str,
    Path(
        alias="vmId",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="Id of the machine",
        examples=[_VM_ID],
    ),
]


def _require_rfc3339(value: object) -> object:
    if isinstance(value, str) and "T" not in value.upper():
        raise ValueError("write the time as 2026-01-02T03:04:05Z")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the year must be between 1 and 9999, also in UTC") from None


Timestamp = Annotated[AwareDatetime, BeforeValidator(_require_rfc3339), AfterValidator(_to_utc)]
"""A time with its zone in RFC 3339; numbers (Unix time) are refused."""

FreeText = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")]
"""A short text that a user wrote: a reason, a name."""
