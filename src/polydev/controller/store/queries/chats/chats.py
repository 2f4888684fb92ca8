"""Queries of `chats` and `chat_turns`.

A chat has at most one active turn. A controller claims a `queued` turn by writing its executor id;
it must not change a turn that has ended or belongs to another controller (`require_turn`). The
events of a turn are in `chat_events.py`.
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
    """A chat whose last turn is queued or running."""

    chat: Chat
    stop_requested_at: datetime | None


async def insert(connection: AsyncConnection, chat: Chat) -> None:
    """Insert a chat."""
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
    """Return a user's chat; `to_change` locks its row. Raises NoSuchChat."""
    chat = await find(connection, chat_id, to_change=to_change)
    if chat is None or chat.user_id != user_id:
        raise NoSuchChat(f"You have no chat {chat_id}")
    return chat


async def find(
    connection: AsyncConnection, chat_id: ChatId, *, to_change: bool = False
) -> Chat | None:
    """Return a chat of any user; `to_change` locks its row."""
    query = sa.select(chats).where(chats.c.chat_id == chat_id)
    if to_change:
        query = query.with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _chat(row)


async def list_for_user(
    connection: AsyncConnection, user_id: UserId, span: PageSpec, provider: str | None = None
) -> list[Chat]:
    """List a page of a user's chats, newest first."""
    query = sa.select(chats).where(chats.c.user_id == user_id)
    if provider is not None:
        query = query.where(chats.c.provider == provider)
    order = (chats.c.created_at, chats.c.chat_id)
    rows = await connection.execute(keyset.page(query, order, span, newest_first=True))
    return [_chat(row) for row in rows]


async def count_for_user(connection: AsyncConnection, user_id: UserId) -> int:
    """Count a user's chats."""
    query = sa.select(sa.func.count()).where(chats.c.user_id == user_id)
    return int((await connection.execute(query)).scalar_one())


async def count_active_for_user(connection: AsyncConnection, user_id: UserId) -> int:
    """Count a user's chats with a queued or running turn."""
    query = sa.select(sa.func.count()).where(chats.c.user_id == user_id, _ACTIVE)
    return int((await connection.execute(query)).scalar_one())


async def has_active_turn(connection: AsyncConnection, machine: Machine) -> bool:
    """Check for an active turn of a chat that uses the machine.

    Under the lock of `locks.acquire("chats", owner)` no turn is added at the same time.
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
    """List all chats with a queued or running turn, oldest turn first."""
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
    """Return the controllers with agents of a user's chats."""
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
    """Note that a controller holds no agents for idle chats.

    With a machine and provider, only for those chats.
    """
    query = sa.update(chats).where(chats.c.executor_id == executor_id, ~_ACTIVE)
    if vm_id is not None:
        query = query.where(chats.c.vm_id == vm_id, chats.c.provider == provider)
    await connection.execute(query.values(executor_id=None))


# -- turns ---------------------------------------------------------------------------------------


async def insert_turn(
    connection: AsyncConnection, chat: Chat, prompt: str, title: str, at: datetime
) -> int:
    """Insert the next turn of an idle chat that is locked (`to_change`).

    Return its number.

    The chat gets the title if it has none yet.
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
    events = [ChatEvent(first_id, EventKind.USER, {"text": prompt}, at)]
    if await set_title(connection, chat.chat_id, title, TitledBy.PROMPT, [TitledBy.UNTITLED]):
        events.append(ChatEvent(first_id + 1, EventKind.TITLE, {"title": title}, at))
    await chat_events.insert(connection, chat.chat_id, chat.user_id, events)
    return turn


async def find_turn(connection: AsyncConnection, chat_id: ChatId, turn: int) -> ChatTurn | None:
    """Return a turn of a chat."""
    query = sa.select(chat_turns).where(chat_turns.c.chat_id == chat_id, chat_turns.c.turn == turn)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _turn(row)


async def claim_turn(connection: AsyncConnection, chat: Chat, executor_id: str) -> Chat | None:
    """Claim the chat's queued turn for a controller.

    None if it has changed.
    """
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
    """Lock the chat if this turn still runs at this controller.

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
    """Record a request to stop the turn; the first one counts."""
    requested_at = sa.func.coalesce(chat_turns.c.stop_requested_at, at)
    await connection.execute(
        sa.update(chat_turns)
        .where(chat_turns.c.chat_id == chat_id, chat_turns.c.turn == turn)
        .values(stop_requested_at=requested_at)
    )


async def end_turn(
    connection: AsyncConnection, chat: Chat, reason: TurnEnd, stored_bytes: int, at: datetime
) -> None:
    """Record the end and size of a turn; the chat becomes idle."""
    await connection.execute(
        sa.update(chat_turns)
        .where(chat_turns.c.chat_id == chat.chat_id, chat_turns.c.turn == chat.turn)
        .values(ended_at=at, reason=reason, bytes=chat_turns.c.bytes + stored_bytes)
    )
    await update(connection, chat.chat_id, status=ChatStatus.IDLE, updated_at=at)


async def find_turn_over_size(connection: AsyncConnection, chat_id: ChatId, max_bytes: int) -> int:
    """Return the last turn to delete for a size; 0 for none."""
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
    """Delete a chat's turns up to one, with their permission requests."""
    for table in (chat_permissions, chat_turns):
        gone = sa.delete(table).where(table.c.chat_id == chat_id, table.c.turn <= last)
        await connection.execute(gone)


# -- changes -------------------------------------------------------------------------------------


async def update(
    connection: AsyncConnection, chat_id: ChatId, *conditions: Any, **values: Any
) -> Chat | None:
    """Update a chat if the conditions hold, and emit an event.

    None if they do not.
    """
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
    """Set the title unless it was set by others than `instead_of`.

    Return whether it was.
    """
    wanted = chats.c.titled_by.in_(list(instead_of)), chats.c.title != title
    return await update(connection, chat_id, *wanted, title=title, titled_by=by) is not None


async def delete(connection: AsyncConnection, chat: Chat) -> None:
    """Delete a chat with its turns, events and requests."""
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
