"""Queries of `api_tokens`; secrets are stored as hashes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import event_outbox
from polydev.controller.store.tables import api_tokens
from polydev.shared.domain import ApiToken, Scope, UserId
from polydev.shared.errors import NoSuchToken
from polydev.shared.hints import Hint

# The users' database role may not read hashes.
_READABLE = [it for it in api_tokens.c if it is not api_tokens.c.secret_hash]


async def insert(connection: AsyncConnection, token: ApiToken, secret_hash: str) -> None:
    """Insert a token."""
    await connection.execute(
        sa.insert(api_tokens).values(
            token_id=token.token_id,
            user_id=token.user_id,
            name=token.name,
            secret_hash=secret_hash,
            scopes=" ".join(sorted(token.scopes)),
            created_at=token.created_at,
            expires_at=token.expires_at,
        )
    )
    await event_outbox.emit(connection, token.user_id, "token", token.token_id, status="created")


async def find_with_hash(connection: AsyncConnection, token_id: str) -> tuple[ApiToken, str] | None:
    """Return a token, valid or not, and the hash of its secret."""
    query = sa.select(api_tokens).where(api_tokens.c.token_id == token_id)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (_token(row), row.secret_hash)


async def list_for_user(connection: AsyncConnection, user_id: UserId) -> list[ApiToken]:
    """List a user's tokens, newest first."""
    query = (
        sa.select(*_READABLE)
        .where(api_tokens.c.user_id == user_id)
        .order_by(api_tokens.c.created_at.desc(), api_tokens.c.token_id)
    )
    return [_token(row) for row in await connection.execute(query)]


async def set_last_used(connection: AsyncConnection, token_id: str, at: datetime) -> None:
    """Record the token's last use."""
    await connection.execute(
        sa.update(api_tokens).where(api_tokens.c.token_id == token_id).values(last_used_at=at)
    )


async def delete(connection: AsyncConnection, user_id: UserId, token_id: str) -> None:
    """Delete one of a user's tokens. Raises NoSuchToken."""
    deleted = await connection.execute(
        sa.delete(api_tokens).where(
            api_tokens.c.token_id == token_id, api_tokens.c.user_id == user_id
        )
    )
    if not deleted.rowcount:
        raise NoSuchToken("There is no such API token", hint=Hint.LIST_API_TOKENS.text())
    await event_outbox.emit(connection, user_id, "token", token_id, status="revoked")


def _token(row: sa.Row[Any]) -> ApiToken:
    return ApiToken(
        token_id=row.token_id,
        user_id=UserId(row.user_id),
        name=row.name,
        scopes=frozenset(Scope(it) for it in row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
