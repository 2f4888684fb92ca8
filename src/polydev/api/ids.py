"""Ids in paths: what may stand there at all. Whether there is such a thing, the store knows.

Anything else is answered 422 before it reaches a database, which may refuse it in its own way (NUL
characters) or search for it in vain.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

Id = Annotated[
    str,
    Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:@-]+$", description="An id"),
]
"""An id in a path: of a machine, a session, a token, a host, a person."""
