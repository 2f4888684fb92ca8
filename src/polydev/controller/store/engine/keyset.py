"""Keyset pagination: a page of rows after a known one.

Unlike offsets, it neither repeats nor skips rows when others are added or deleted in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa


class PageSpec(NamedTuple):
    """The requested part of a list."""

    limit: int
    after: tuple[Any, ...] | None = None
    """Sort columns of the row before the page; None: from the start."""


def page(
    query: sa.Select[Any],
    order: Sequence[sa.ColumnElement[Any]],
    span: PageSpec | None,
    *,
    newest_first: bool = False,
) -> sa.Select[Any]:
    """Order the query and limit it to a page.

    The sort columns must be unique together.
    """
    query = query.order_by(*(it.desc() if newest_first else it for it in order))
    if span is None:
        return query
    if span.after is not None:
        query = query.where(_beyond(order, span.after, newest_first))
    return query.limit(span.limit)


def _beyond(
    order: Sequence[sa.ColumnElement[Any]], after: tuple[Any, ...], newest_first: bool
) -> sa.ColumnElement[bool]:
    column, value = order[0], after[0]
    beyond: sa.ColumnElement[bool] = column < value if newest_first else column > value
    if len(order) == 1:
        return beyond
    return sa.or_(beyond, sa.and_(column == value, _beyond(order[1:], after[1:], newest_first)))
