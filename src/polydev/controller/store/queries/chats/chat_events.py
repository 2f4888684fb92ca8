"""Queries of `chat_events` and `chat_permissions`.

The controller that runs a turn appends its events in the order of their ids; events never change.
Readers can merge consecutive pieces of text, since a CLI streams word by word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import chat_events, chat_permissions
from polydev.shared.domain import LAST_IN_TURN, TURN_IDS, ChatEvent, ChatId, EventKind, UserId

PAGE = 500
MAX_PAGE_CHARACTERS = 2 * 1024 * 1024
"""Size limit of a page, not counting its last event: a CLI decides how large events are."""
MAX_MERGED_CHARACTERS = 64 * 1024
_MERGED = (EventKind.TEXT, EventKind.THOUGHT)
_size = sa.func.length(sa.cast(chat_events.c.data, sa.Text))


@dataclass(frozen=True, slots=True)
class Permission:
    """A CLI's permission request, and the user's answer."""

    chat_id: ChatId
    request_id: str
    user_id: UserId
    turn: int
    options: tuple[str, ...]
    """Ids of the options."""
    option_id: str | None
    answered_at: datetime | None
    """When it was answered; without an option, it was withdrawn."""


async def insert(
    connection: AsyncConnection, chat_id: ChatId, user_id: UserId, events: Sequence[ChatEvent]
) -> None:
    """Insert events."""
    rows = [
        {
            "chat_id": chat_id,
            "event_id": it.event_id,
            "user_id": user_id,
            "kind": it.kind,
            "data": it.data,
            "at": it.at,
        }
        for it in events
    ]
    await connection.execute(sa.insert(chat_events), rows)


async def get_turn_size(connection: AsyncConnection, chat_id: ChatId, turn: int) -> int:
    """Return the approximate size of a turn's events in bytes."""
    query = sa.select(sa.func.sum(_size)).where(
        chat_events.c.chat_id == chat_id,
        chat_events.c.event_id.between(turn * TURN_IDS, turn * TURN_IDS + LAST_IN_TURN),
    )
    return int((await connection.execute(query)).scalar_one() or 0)


async def list_after(
    connection: AsyncConnection, chat_id: ChatId, event_id: int, limit: int = PAGE
) -> list[ChatEvent]:
    """List a page of a chat's events after an id, oldest first."""
    sizes = (
        sa.select(chat_events.c.event_id, _size.label("size"))
        .where(chat_events.c.chat_id == chat_id, chat_events.c.event_id > event_id)
        .order_by(chat_events.c.event_id)
        .limit(limit)
        .subquery()
    )
    total = sa.func.sum(sizes.c.size).over(order_by=sizes.c.event_id)
    fits = sa.select(sizes.c.event_id, (total - sizes.c.size).label("before")).subquery()
    query = (
        sa.select(chat_events)
        .join(fits, fits.c.event_id == chat_events.c.event_id)
        .where(chat_events.c.chat_id == chat_id, fits.c.before < MAX_PAGE_CHARACTERS)
        .order_by(chat_events.c.event_id)
    )
    return [
        ChatEvent(row.event_id, EventKind(row.kind), row.data, row.at)
        for row in await connection.execute(query)
    ]


def merge_text(events: Iterable[ChatEvent]) -> list[ChatEvent]:
    """Merge consecutive text events into one with the last id.

    A reader that continues after that id misses nothing and gets nothing twice.
    """
    found: list[ChatEvent] = []
    for event in events:
        last = found[-1] if found else None
        if last is not None and _continues(last, event):
            text = last.data["text"] + event.data["text"]
            found[-1] = replace(last, event_id=event.event_id, data={"text": text})
        else:
            found.append(event)
    return found


def _continues(last: ChatEvent, event: ChatEvent) -> bool:
    return (
        event.kind in _MERGED
        and event.kind is last.kind
        and event.turn == last.turn
        and len(last.data["text"]) + len(event.data["text"]) <= MAX_MERGED_CHARACTERS
    )


async def delete_up_to_turn(
    connection: AsyncConnection, chat_id: ChatId, turn: int, at: datetime
) -> None:
    """Delete the events of a chat's turns up to one.

    A notice replaces them.
    """
    last = turn * TURN_IDS + LAST_IN_TURN
    here = chat_events.c.chat_id == chat_id
    query = sa.select(chat_events.c.user_id).where(here).limit(1)
    user_id = (await connection.execute(query)).scalar()
    if user_id is None:
        return
    await connection.execute(sa.delete(chat_events).where(here, chat_events.c.event_id <= last))
    text = "Earlier messages were deleted: the chat is too large"
    notice = ChatEvent(last, EventKind.NOTICE, {"code": "forgotten", "text": text}, at)
    await insert(connection, chat_id, UserId(user_id), [notice])


# -- permissions ---------------------------------------------------------------------------------


async def insert_permission(
    connection: AsyncConnection, permission: Permission, at: datetime
) -> None:
    """Insert a permission request."""
    await connection.execute(
        sa.insert(chat_permissions).values(
            chat_id=permission.chat_id,
            request_id=permission.request_id,
            user_id=permission.user_id,
            turn=permission.turn,
            options=list(permission.options),
            asked_at=at,
        )
    )


async def find_permission(
    connection: AsyncConnection, chat_id: ChatId, request_id: str
) -> Permission | None:
    """Return a permission request."""
    query = sa.select(chat_permissions).where(
        chat_permissions.c.chat_id == chat_id, chat_permissions.c.request_id == request_id
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _permission(row)


async def list_answered_permissions(
    connection: AsyncConnection, requests: Sequence[tuple[ChatId, str]]
) -> list[Permission]:
    """List those of the requests that users have answered."""
    query = sa.select(chat_permissions).where(
        sa.tuple_(chat_permissions.c.chat_id, chat_permissions.c.request_id).in_(requests),
        chat_permissions.c.option_id.is_not(None),
    )
    return [_permission(row) for row in await connection.execute(query)]


async def answer_permission(
    connection: AsyncConnection,
    chat_id: ChatId,
    request_id: str,
    option_id: str | None,
    at: datetime,
) -> bool:
    """Answer or withdraw a request; return whether it was open."""
    result = await connection.execute(
        sa.update(chat_permissions)
        .where(
            chat_permissions.c.chat_id == chat_id,
            chat_permissions.c.request_id == request_id,
            chat_permissions.c.answered_at.is_(None),
        )
        .values(option_id=option_id, answered_at=at)
    )
    return bool(result.rowcount)


async def close_permissions(connection: AsyncConnection, chat_id: ChatId, at: datetime) -> None:
    """Withdraw all open requests of a chat."""
    await connection.execute(
        sa.update(chat_permissions)
        .where(chat_permissions.c.chat_id == chat_id, chat_permissions.c.answered_at.is_(None))
        .values(answered_at=at)
    )


def _permission(row: sa.Row[Any]) -> Permission:
    return Permission(
        chat_id=ChatId(row.chat_id),
        request_id=row.request_id,
        user_id=UserId(row.user_id),
        turn=row.turn,
        options=tuple(row.options),
        option_id=row.option_id,
        answered_at=row.answered_at,
    )
