"""Queries of `credentials`, which are always sealed; only the vault opens them.

A credential that is being revoked is erased and no longer live; its row stays until it is also
removed from the CLI machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine.event_outbox import emit
from polydev.controller.store.engine.keyset import PageSpec, page
from polydev.controller.store.tables import credentials
from polydev.shared.domain import (
    Credential,
    CredentialId,
    CredentialKind,
    SealedCredential,
    UserId,
    Validity,
    VmId,
)
from polydev.shared.errors import NoSuchCredential
from polydev.shared.hints import Hint

_SEALED = [credentials.c[name] for name in SealedCredential.__dataclass_fields__]
_READABLE = [credentials.c[name] for name in Credential.__dataclass_fields__]
_LIVE = credentials.c.revoked_at.is_(None)


async def upsert(
    connection: AsyncConnection, row: SealedCredential, expires_at: datetime | None = None
) -> None:
    """Store a credential.

    Replace one with the same id, since a step may run twice.
    """
    await connection.execute(
        sa.delete(credentials).where(credentials.c.credential_id == row.credential_id)
    )
    await connection.execute(sa.insert(credentials).values(**asdict(row), expires_at=expires_at))
    await _emit(connection, row, "stored")


async def find_sealed(
    connection: AsyncConnection, credential_id: CredentialId
) -> SealedCredential | None:
    """Return a sealed credential, unless it is being revoked."""
    return await _find(connection, credentials.c.credential_id == credential_id)


async def find_newest_sealed(
    connection: AsyncConnection, user_id: UserId, provider: str
) -> SealedCredential | None:
    """Return a user's live credential for a provider."""
    return await _find(
        connection, credentials.c.user_id == user_id, credentials.c.provider == provider
    )


async def find_any_without_key_id(connection: AsyncConnection) -> SealedCredential | None:
    """Return any row that the former Node.js controller wrote."""
    return await _find(connection, credentials.c.key_id.is_(None))


async def delete(connection: AsyncConnection, credential_id: CredentialId) -> None:
    """Delete a credential if it exists."""
    await _delete(connection, "forgotten", credentials.c.credential_id == credential_id)


async def delete_undelivered(connection: AsyncConnection, credential_id: CredentialId) -> None:
    """Delete a credential unless it was delivered to a CLI machine."""
    which = credentials.c.credential_id == credential_id
    await _delete(connection, "forgotten", which, credentials.c.vm_id.is_(None))


async def delete_replaced(connection: AsyncConnection, keep: CredentialId) -> None:
    """Delete the credentials that `keep` replaces: a login has one live copy."""
    query = sa.select(credentials.c.user_id, credentials.c.provider).where(
        credentials.c.credential_id == keep
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return
    await _delete(
        connection,
        "replaced",
        credentials.c.user_id == row.user_id,
        credentials.c.provider == row.provider,
        credentials.c.credential_id != keep,
    )


# -- credentials without their secrets -----------------------------------------------------------


async def list_for_user(
    connection: AsyncConnection, user_id: UserId, span: PageSpec | None = None
) -> list[Credential]:
    """List a user's credentials, including those being revoked, newest first."""
    query = sa.select(*_READABLE).where(credentials.c.user_id == user_id)
    order = (credentials.c.created_at, credentials.c.credential_id)
    listed = page(query, order, span, newest_first=True)
    return [_credential(row) for row in await connection.execute(listed)]


async def get(
    connection: AsyncConnection, credential_id: CredentialId, user_id: UserId | None = None
) -> Credential:
    """Return a credential, of a user if one is given. Raises NoSuchCredential."""
    query = sa.select(*_READABLE).where(credentials.c.credential_id == credential_id)
    if user_id is not None:
        query = query.where(credentials.c.user_id == user_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NoSuchCredential(
            f"There is no credential {credential_id}",
            hint=Hint.LIST_CREDENTIALS.text(),
        )
    return _credential(row)


async def list_revoking(connection: AsyncConnection) -> list[Credential]:
    """List credentials of all users that are being revoked."""
    query = sa.select(*_READABLE).where(~_LIVE).order_by(credentials.c.revoked_at)
    return [_credential(row) for row in await connection.execute(query)]


async def set_delivered(
    connection: AsyncConnection, credential_id: CredentialId, vm_id: VmId, at: datetime
) -> None:
    """Record that the CLI in a machine accepted the credential."""
    changed = await connection.execute(
        sa.update(credentials)
        .where(credentials.c.credential_id == credential_id, _LIVE)
        .values(vm_id=vm_id, checked_at=at, validity=Validity.VALID)
    )
    if changed.rowcount:
        await _emit(connection, await get(connection, credential_id), Validity.VALID)


async def set_checked(
    connection: AsyncConnection, credential_id: CredentialId, validity: Validity, at: datetime
) -> None:
    """Record the result of a check by the CLI."""
    changed = await connection.execute(
        sa.update(credentials)
        .where(credentials.c.credential_id == credential_id, _LIVE)
        .values(checked_at=at, validity=validity)
    )
    if changed.rowcount:
        await _emit(connection, await get(connection, credential_id), validity)


async def revoke(connection: AsyncConnection, credential: Credential, at: datetime) -> bool:
    """Erase the sealed data for good; return whether it was live."""
    changed = await connection.execute(
        sa.update(credentials)
        .where(credentials.c.credential_id == credential.credential_id, _LIVE)
        .values(
            encrypted_credentials="",
            encryption_iv="",
            encryption_tag="",
            encryption_salt="",
            revoked_at=at,
        )
    )
    if changed.rowcount:
        await _emit(connection, credential, "revoking")
    return bool(changed.rowcount)


async def delete_revoked(connection: AsyncConnection, credential: Credential) -> None:
    """Delete a revoked credential's row."""
    changed = await connection.execute(
        sa.delete(credentials).where(
            credentials.c.credential_id == credential.credential_id, ~_LIVE
        )
    )
    if changed.rowcount:
        await _emit(connection, credential, "revoked")


# -- key rotation --------------------------------------------------------------------------------


async def list_not_sealed_with(
    connection: AsyncConnection, key_id: str, after: str, limit: int
) -> Sequence[SealedCredential]:
    """List credentials that this key did not seal, by id, after `after`."""
    query = (
        sa.select(*_SEALED)
        .where(
            sa.or_(credentials.c.key_id.is_(None), credentials.c.key_id != key_id),
            credentials.c.credential_id > after,
            _LIVE,
        )
        .order_by(credentials.c.credential_id)
        .limit(limit)
    )
    return [_sealed(row) for row in await connection.execute(query)]


async def update_sealed(
    connection: AsyncConnection,
    old: SealedCredential,
    new: SealedCredential,
    **values: datetime | None,
) -> bool:
    """Replace the sealed data. False if it was changed concurrently."""
    changed = await connection.execute(
        sa.update(credentials)
        .where(
            credentials.c.credential_id == old.credential_id,
            credentials.c.encryption_salt == old.encryption_salt,
            credentials.c.encryption_tag == old.encryption_tag,
            _LIVE,
        )
        .values(
            encrypted_credentials=new.encrypted_credentials,
            encryption_iv=new.encryption_iv,
            encryption_tag=new.encryption_tag,
            encryption_salt=new.encryption_salt,
            key_id=new.key_id,
            **values,
        )
    )
    return bool(changed.rowcount)


async def _find(
    connection: AsyncConnection, *conditions: sa.ColumnElement[bool]
) -> SealedCredential | None:
    query = (
        sa.select(*_SEALED)
        .where(*conditions, _LIVE)
        .order_by(credentials.c.created_at.desc(), credentials.c.credential_id)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _sealed(row)


async def _delete(
    connection: AsyncConnection, why: str, *conditions: sa.ColumnElement[bool]
) -> None:
    query = sa.delete(credentials).where(*conditions).returning(*_READABLE)
    for row in (await connection.execute(query)).all():
        await _emit(connection, _credential(row), why)


async def _emit(
    connection: AsyncConnection, credential: SealedCredential | Credential, status: str
) -> None:
    await emit(
        connection,
        credential.user_id,
        "credential",
        credential.credential_id,
        provider=credential.provider,
        status=status,
    )


def _sealed(row: sa.Row[Any]) -> SealedCredential:
    values = dict(row._mapping)
    return SealedCredential(**{**values, "kind": CredentialKind(values["kind"])})


def _credential(row: sa.Row[Any]) -> Credential:
    values = dict(row._mapping)
    values["kind"] = CredentialKind(values["kind"])
    if values["validity"] is not None:
        values["validity"] = Validity(values["validity"])
    return Credential(**values)
