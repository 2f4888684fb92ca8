"""Paginate lists with `?limit=&cursor=` and a `Link` header (RFC 8288).

The body stays a JSON array. A cursor holds the sort key of the last row, opaque to clients. It is
validated, and it can select only rows that the caller may see anyway.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

from polydev.controller.store.engine.keyset import PageSpec
from polydev.shared.errors import BadRequest

MAX_LIMIT = 500
DEFAULT_LIMIT = 100
_MAX_CURSOR = 512
_MAX_NUMBER = 2**63 - 1

Row = TypeVar("Row")
SortKey = tuple[datetime | str | int, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The requested page of a list."""

    limit: int
    cursor: str | None
    request: Request
    response: Response

    def page_spec(self, *kinds: type) -> PageSpec:
        """Return the store's page, one row longer to detect the next.

        `kinds` are the types of the sort columns. Raises BadRequest.
        """
        return PageSpec(
            self.limit + 1, None if self.cursor is None else _decode_cursor(self.cursor, kinds)
        )

    def trim(self, rows: Sequence[Row], key: Callable[[Row], SortKey]) -> Sequence[Row]:
        """Return the rows of this page.

        Add the `Link` header if there is a next one.

        `rows` are the result for `page_spec()`; `key` returns the sort key of a row.
        """
        if len(rows) <= self.limit:
            return rows
        rows = rows[: self.limit]
        there = self.request.url.include_query_params(
            cursor=_encode_cursor(key(rows[-1])), limit=self.limit
        )
        self.response.headers["Link"] = f'<{there.path}?{there.query}>; rel="next"'
        return rows


def _page(
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    cursor: Annotated[
        str | None, Query(max_length=_MAX_CURSOR, description="The cursor from the `Link` header")
    ] = None,
) -> Page:
    return Page(limit, cursor, request, response)


PageParams = Annotated[Page, Depends(_page)]


def _encode_cursor(key: SortKey) -> str:
    parts = [it.isoformat() if isinstance(it, datetime) else it for it in key]
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, kinds: Sequence[type]) -> tuple[Any, ...]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        return tuple(_decode_part(part, kind) for part, kind in zip(parts, kinds, strict=True))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadRequest(
            "This cursor is not valid here", hint="Start again without a cursor"
        ) from None


def _decode_part(part: object, kind: type) -> datetime | str | int:
    """Validate one column of a cursor. Raises ValueError, TypeError."""
    if kind is datetime and isinstance(part, str):
        at = datetime.fromisoformat(part)
        if at.tzinfo is None:
            raise ValueError("time without a time zone")
        return at.astimezone(UTC)
    if kind is int and type(part) is int and abs(part) <= _MAX_NUMBER:
        return part
    if kind is str and isinstance(part, str) and "\x00" not in part:
        part.encode()  # raises for a lone surrogate
        return part
    raise TypeError(f"not a {kind.__name__}")
