"""Rows of `chats` and `chat_turns`: conversations, and what was asked in them.

A chat has one turn at a time. A turn that waits (`queued`) is claimed by a controller, which writes
its name beside it; who does a turn changes nothing of it once it is somebody else's, or over
(`require_turn`). What happens in a turn is in `chat_events.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store import tables
from polydev.controller.store.engine import keyset
from polydev.controller.store.engine.event_outbox import emit
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.chats import chat_events
from polydev.controller.store.tables import GONE_STATES, chat_permissions, chat_turns, chats, vms
from polydev.shared.domain import (
    TURN_IDS,
    Chat,
    ChatEvent,
    ChatId,
    ChatStatus,
    ChatTurn,
    EventKind,
    Machine,
    TitledBy,
    TurnEnd,
    UserId,
    VmId,
)
from polydev.shared.errors import NoSuchChat

_ACTIVE = chats.c.status != "idle"
_RUNNING = chats.c.status.in_([ChatStatus.RUNNING, ChatStatus.WAITING])


@dataclass(frozen=True, slots=True)
class ActiveChat:
    """A chat whose last turn waits or goes on."""

    chat: Chat
    stop_requested_at: datetime | None


async def insert(connection: AsyncConnection, chat: Chat) -> None:
    """A new chat."""
    await connection.execute(
        sa.insert(chats).values(
            chat_id=chat.chat_id,
            user_id=chat.user_id,
            provider=chat.provider,
            title=chat.title,
            titled_by=chat.titled_by,
            vm_id=chat.vm_id,
            acp_session_id=chat.acp_session_id,
            turn=chat.turn,
            status=chat.status,
            executor_id=chat.executor_id,
            created_at=chat.created_at,
            updated_at=chat.updated_at,
        )
    )
    await _emit(connection, chat.user_id, chat.chat_id, chat.provider, chat.status)


async def get(
    connection: AsyncConnection, chat_id: ChatId, user_id: UserId, *, to_change: bool = False
) -> Chat:
    """A person's chat. `to_change`: nobody else changes it meanwhile. Raises NoSuchChat."""
    chat = await find(connection, chat_id, to_change=to_change)
    if chat is None or chat.user_id != user_id:
        raise NoSuchChat(f"You have no chat {chat_id}")
    return chat


async def find(
    connection: AsyncConnection, chat_id: ChatId, *, to_change: bool = False
) -> Chat | None:
    """The chat of that id, whoever's."""
    query = sa.select(chats).where(chats.c.chat_id == chat_id)
    if to_change:
        query = query.with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _chat(row)


async def list_for_user(
    connection: AsyncConnection, user_id: UserId, span: PageSpec, provider: str | None = None
) -> list[Chat]:
    """A span of a person's chats, the newest first."""
    query = sa.select(chats).where(chats.c.user_id == user_id)
    if provider is not None:
        query = query.where(chats.c.provider == provider)
    order = (chats.c.created_at, chats.c.chat_id)
    rows = await connection.execute(keyset.page(query, order, span, newest_first=True))
    return [_chat(row) for row in rows]


async def count_for_user(connection: AsyncConnection, user_id: UserId) -> int:
    """How many chats a person has."""
    query = sa.select(sa.func.count()).where(chats.c.user_id == user_id)
    return int((await connection.execute(query)).scalar_one())


async def count_active_for_user(connection: AsyncConnection, user_id: UserId) -> int:
    """In how many of a person's chats a turn waits or goes on."""
    query = sa.select(sa.func.count()).where(chats.c.user_id == user_id, _ACTIVE)
    return int((await connection.execute(query)).scalar_one())


async def has_active_turn(connection: AsyncConnection, machine: Machine) -> bool:
    """Whether a turn waits or goes on in a chat whose CLI is in that machine, or may be.

    Under the lock of `locks.hold("chats", owner)` no turn is added meanwhile.
    """
    others = sa.select(vms.c.vm_id).where(
        vms.c.user_id == machine.user_id,
        vms.c.vm_id != machine.vm_id,
        vms.c.status.not_in(GONE_STATES),
    )
    may_be_here = sa.or_(chats.c.vm_id.is_(None), chats.c.vm_id.not_in(others))
    query = sa.select(chats.c.chat_id).where(
        chats.c.user_id == machine.user_id, _ACTIVE, may_be_here
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def list_active(connection: AsyncConnection) -> list[ActiveChat]:
    """Everybody's chats whose turn waits or goes on, the longest waiting first."""
    query = (
        sa.select(chats, chat_turns.c.stop_requested_at)
        .join(
            chat_turns,
            sa.and_(chat_turns.c.chat_id == chats.c.chat_id, chat_turns.c.turn == chats.c.turn),
        )
        .where(_ACTIVE)
        .order_by(chat_turns.c.created_at, chats.c.chat_id)
    )
    return [
        ActiveChat(_chat(row), row.stop_requested_at) for row in await connection.execute(query)
    ]


async def list_agent_holders(
    connection: AsyncConnection, user_id: UserId, provider: str
) -> set[str]:
    """The controllers that hold agents of a person's chats with a provider."""
    query = (
        sa.select(chats.c.executor_id)
        .distinct()
        .where(
            chats.c.user_id == user_id,
            chats.c.provider == provider,
            chats.c.executor_id.is_not(None),
        )
    )
    return {row[0] for row in await connection.execute(query)}


async def release_agents(
    connection: AsyncConnection, executor_id: str, vm_id: VmId | None = None, provider: str = ""
) -> None:
    """A controller holds no agent any more for chats that do nothing: none at all, or none of a
    provider in a machine."""
    query = sa.update(chats).where(chats.c.executor_id == executor_id, ~_ACTIVE)
    if vm_id is not None:
        query = query.where(chats.c.vm_id == vm_id, chats.c.provider == provider)
    await connection.execute(query.values(executor_id=None))


# -- turns ---------------------------------------------------------------------------------------


async def insert_turn(
    connection: AsyncConnection, chat: Chat, prompt: str, title: str, at: datetime
) -> int:
    """The next turn of a chat that was taken `to_change`, and does nothing. Returns its number.

    The chat is called `title` if it has no title yet.
    """
    turn = chat.turn + 1
    await connection.execute(
        sa.insert(chat_turns).values(
            chat_id=chat.chat_id,
            turn=turn,
            user_id=chat.user_id,
            prompt=prompt,
            bytes=len(prompt.encode()),
            created_at=at,
        )
    )
    await update(connection, chat.chat_id, turn=turn, status=ChatStatus.QUEUED, updated_at=at)
    first_id = turn * TURN_IDS + 1
    told = [ChatEvent(first_id, EventKind.USER, {"text": prompt}, at)]
    if await set_title(connection, chat.chat_id, title, TitledBy.PROMPT, [TitledBy.NOBODY]):
        told.append(ChatEvent(first_id + 1, EventKind.TITLE, {"title": title}, at))
    await chat_events.insert(connection, chat.chat_id, chat.user_id, told)
    return turn


async def find_turn(connection: AsyncConnection, chat_id: ChatId, turn: int) -> ChatTurn | None:
    """One turn of a chat."""
    query = sa.select(chat_turns).where(chat_turns.c.chat_id == chat_id, chat_turns.c.turn == turn)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _turn(row)


async def claim_turn(connection: AsyncConnection, chat: Chat, executor_id: str) -> Chat | None:
    """Have a controller do the chat's turn, if it still waits as it was seen. The chat, if so."""
    return await update(
        connection,
        chat.chat_id,
        chats.c.status == ChatStatus.QUEUED,
        chats.c.turn == chat.turn,
        chats.c.executor_id.is_not_distinct_from(chat.executor_id),
        status=ChatStatus.RUNNING,
        executor_id=executor_id,
    )


async def require_turn(connection: AsyncConnection, chat: Chat) -> None:
    """Return if that turn goes on, done by whom it was; nobody changes that in this transaction.

    Raises NoSuchChat.
    """
    query = sa.select(chats.c.chat_id).where(
        chats.c.chat_id == chat.chat_id,
        chats.c.turn == chat.turn,
        chats.c.executor_id == chat.executor_id,
        _RUNNING,
    )
    if (await connection.execute(query.with_for_update())).one_or_none() is None:
        raise NoSuchChat(f"Turn {chat.turn} of chat {chat.chat_id} is over")


async def request_stop(
    connection: AsyncConnection, chat_id: ChatId, turn: int, at: datetime
) -> None:
    """Note that the person wants the turn stopped; the first wish counts."""
    kept = sa.func.coalesce(chat_turns.c.stop_requested_at, at)
    await connection.execute(
        sa.update(chat_turns)
        .where(chat_turns.c.chat_id == chat_id, chat_turns.c.turn == turn)
        .values(stop_requested_at=kept)
    )


async def end_turn(
    connection: AsyncConnection, chat: Chat, reason: TurnEnd, kept_bytes: int, at: datetime
) -> None:
    """Note how a chat's turn ended, and how much is kept of it; the chat does nothing now."""
    await connection.execute(
        sa.update(chat_turns)
        .where(chat_turns.c.chat_id == chat.chat_id, chat_turns.c.turn == chat.turn)
        .values(ended_at=at, reason=reason, bytes=chat_turns.c.bytes + kept_bytes)
    )
    await update(connection, chat.chat_id, status=ChatStatus.IDLE, updated_at=at)


async def find_turn_over_size(connection: AsyncConnection, chat_id: ChatId, max_bytes: int) -> int:
    """The last turn before which all must go, so that a chat is not larger than that; 0: none."""
    query = (
        sa.select(chat_turns.c.turn, chat_turns.c.bytes)
        .where(chat_turns.c.chat_id == chat_id)
        .order_by(chat_turns.c.turn.desc())
    )
    total = 0
    for row in await connection.execute(query):
        total += row.bytes
        if total > max_bytes:
            return int(row.turn)
    return 0


async def delete_turns_up_to(connection: AsyncConnection, chat_id: ChatId, last: int) -> None:
    """Remove a chat's turns up to that one; `chat_events` and permissions go by themselves."""
    for table in (chat_permissions, chat_turns):
        gone = sa.delete(table).where(table.c.chat_id == chat_id, table.c.turn <= last)
        await connection.execute(gone)


# -- changes -------------------------------------------------------------------------------------


async def update(
    connection: AsyncConnection, chat_id: ChatId, *conditions: Any, **values: Any
) -> Chat | None:
    """Set columns of a chat if the conditions hold, and tell its person. The chat, if they did."""
    changed = await connection.execute(
        sa.update(chats)
        .where(chats.c.chat_id == chat_id, *conditions)
        .values(**values)
        .returning(*chats.c)
    )
    row = changed.one_or_none()
    if row is None:
        return None
    chat = _chat(row)
    await _emit(connection, chat.user_id, chat.chat_id, chat.provider, chat.status)
    return chat


async def set_title(
    connection: AsyncConnection,
    chat_id: ChatId,
    title: str,
    by: TitledBy,
    instead_of: Collection[TitledBy],
) -> bool:
    """Give a chat a title, unless somebody else than these gave it one. Whether it did."""
    wanted = chats.c.titled_by.in_(list(instead_of)), chats.c.title != title
    return await update(connection, chat_id, *wanted, title=title, titled_by=by) is not None


async def delete(connection: AsyncConnection, chat: Chat) -> None:
    """Delete a chat with everything in it."""
    for table in (chat_permissions, tables.chat_events, chat_turns, chats):
        await connection.execute(sa.delete(table).where(table.c.chat_id == chat.chat_id))
    await _emit(connection, chat.user_id, chat.chat_id, chat.provider, "deleted")


async def _emit(
    connection: AsyncConnection, user_id: UserId, chat_id: ChatId, provider: str, status: str
) -> None:
    await emit(connection, user_id, "chat", chat_id, provider=provider, status=status)


def _chat(row: sa.Row[Any]) -> Chat:
    return Chat(
        chat_id=ChatId(row.chat_id),
        user_id=UserId(row.user_id),
        provider=row.provider,
        title=row.title,
        titled_by=TitledBy(row.titled_by),
        vm_id=None if row.vm_id is None else VmId(row.vm_id),
        acp_session_id=row.acp_session_id,
        turn=row.turn,
        status=ChatStatus(row.status),
        executor_id=row.executor_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _turn(row: sa.Row[Any]) -> ChatTurn:
    return ChatTurn(
        chat_id=ChatId(row.chat_id),
        turn=row.turn,
        user_id=UserId(row.user_id),
        prompt=row.prompt,
        stop_requested_at=row.stop_requested_at,
        created_at=row.created_at,
        ended_at=row.ended_at,
        reason=None if row.reason is None else TurnEnd(row.reason),
    )
