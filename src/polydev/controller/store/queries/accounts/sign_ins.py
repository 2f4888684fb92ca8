"""Queries of `sign_ins`: signed-in browsers; secrets are stored as hashes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import event_outbox
from polydev.controller.store.tables import sign_ins, users
from polydev.shared.domain import SignIn, UserId
from polydev.shared.errors import NoSuchToken
from polydev.shared.hints import Hint

# The users' database role may not read hashes.
_READABLE = [it for it in sign_ins.c if it is not sign_ins.c.secret_hash]


async def insert(connection: AsyncConnection, sign_in: SignIn, secret_hash: str) -> None:
    """Insert a sign-in."""
    await connection.execute(
        sa.insert(sign_ins).values(
            sign_in_id=sign_in.sign_in_id,
            user_id=sign_in.user_id,
            secret_hash=secret_hash,
            source=sign_in.source,
            user_agent=sign_in.user_agent,
            created_at=sign_in.created_at,
            seen_at=sign_in.seen_at,
            expires_at=sign_in.expires_at,
        )
    )


async def find_by_hash(connection: AsyncConnection, secret_hash: str) -> SignIn | None:
    """Return a sign-in, valid or not, by the hash of its secret."""
    query = sa.select(sign_ins).where(sign_ins.c.secret_hash == secret_hash)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _sign_in(row)


async def list_for_user(
    connection: AsyncConnection, user_id: UserId, seen_since: datetime
) -> list[SignIn]:
    """List a user's sign-ins used after a time, most recently used first."""
    query = (
        sa.select(*_READABLE)
        .where(sign_ins.c.user_id == user_id, sign_ins.c.seen_at > seen_since)
        .order_by(sign_ins.c.seen_at.desc(), sign_ins.c.sign_in_id)
    )
    return [_sign_in(row) for row in await connection.execute(query)]


async def list_sources(connection: AsyncConnection, email: str) -> list[str]:
    """List the network addresses of a user's sign-ins, by e-mail address."""
    query = sa.select(sign_ins.c.source).join(users).where(users.c.email == email).distinct()
    return list((await connection.execute(query)).scalars())


async def set_last_seen(connection: AsyncConnection, sign_in_id: str, at: datetime) -> None:
    """Record the sign-in's last use."""
    await connection.execute(
        sa.update(sign_ins).where(sign_ins.c.sign_in_id == sign_in_id).values(seen_at=at)
    )


async def delete(connection: AsyncConnection, user_id: UserId, sign_in_id: str) -> None:
    """Delete one of a user's sign-ins. Raises NoSuchToken."""
    ended = await connection.execute(
        sa.delete(sign_ins).where(
            sign_ins.c.sign_in_id == sign_in_id, sign_ins.c.user_id == user_id
        )
    )
    if not ended.rowcount:
        raise NoSuchToken("There is no such sign-in", hint=Hint.LIST_SIGN_INS.text())
    await event_outbox.emit(connection, user_id, "account", user_id, status="signed-out")


async def delete_for_user(
    connection: AsyncConnection, user_id: UserId, but: str | None = None
) -> int:
    """Delete a user's sign-ins, all or all but one; return their number."""
    query_ = sa.delete(sign_ins).where(sign_ins.c.user_id == user_id)
    if but is not None:
        query_ = query_.where(sign_ins.c.sign_in_id != but)
    return (await connection.execute(query_)).rowcount


async def prune_expired(connection: AsyncConnection, at: datetime, idle_since: datetime) -> None:
    """Delete expired and idle sign-ins."""
    await connection.execute(
        sa.delete(sign_ins).where(
            sa.or_(sign_ins.c.expires_at <= at, sign_ins.c.seen_at <= idle_since)
        )
    )


def _sign_in(row: sa.Row[Any]) -> SignIn:
    return SignIn(
        sign_in_id=row.sign_in_id,
        user_id=UserId(row.user_id),
        source=row.source,
        user_agent=row.user_agent,
        created_at=row.created_at,
        seen_at=row.seen_at,
        expires_at=row.expires_at,
    )
