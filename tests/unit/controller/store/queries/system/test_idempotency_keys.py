"""Test idempotency keys: claimed once, replayed, and released."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.system import idempotency_keys
from polydev.controller.store.queries.system.idempotency_keys import KeyClaim, PreviousRequest
from polydev.shared.domain import User, UserId
from polydev.shared.errors import TooManyRequests

_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_ANN, _BEN = UserId("ann"), UserId("ben")
_FIRST = KeyClaim(_ANN, "key", "hash", _AT, _AT)


@pytest.fixture
async def database_with_users(store: Database) -> Database:
    async with store.write() as connection:
        for who in (_ANN, _BEN):
            await users.insert(connection, User(who, f"{who}@example.org", _AT))
    return store


async def _take(database: Database, claim: KeyClaim) -> KeyClaim | PreviousRequest:
    async with database.write(claim.user_id) as connection:
        return await idempotency_keys.take(connection, claim, abandoned_before=claim.at - _MINUTE)


def _at(seconds: float, **changed: str) -> KeyClaim:
    at = _AT + timedelta(seconds=seconds)
    return replace(_FIRST, at=at, first_at=at, **changed)  # type: ignore[arg-type]


async def test_key_is_claimed_once(database_with_users: Database) -> None:
    assert await _take(database_with_users, _FIRST) == _FIRST
    assert await _take(database_with_users, _at(1)) == PreviousRequest("hash", None, None)
    assert await _take(database_with_users, _at(1, request_hash="other")) == PreviousRequest(
        "hash", None, None
    )
    other_key, other_user = _at(1, key="another"), _at(1, user_id=_BEN)
    assert await _take(database_with_users, other_key) == other_key
    assert await _take(database_with_users, other_user) == other_user


async def test_response_is_replayed(database_with_users: Database) -> None:
    await _take(database_with_users, _FIRST)
    async with database_with_users.write(_ANN) as connection:
        await idempotency_keys.store_response(connection, _FIRST, 202, "{}")
    assert await _take(database_with_users, _at(3600)) == PreviousRequest("hash", 202, "{}")


async def test_failed_request_releases_its_key(database_with_users: Database) -> None:
    await _take(database_with_users, _FIRST)
    async with database_with_users.write(_ANN) as connection:
        await idempotency_keys.release(connection, _FIRST)
    assert await _take(database_with_users, _at(1)) == _at(1)


async def test_abandoned_key_goes_to_the_same_request(database_with_users: Database) -> None:
    await _take(database_with_users, _FIRST)
    other = await _take(database_with_users, _at(61, request_hash="other"))
    assert other == PreviousRequest("hash", None, None)
    again = await _take(database_with_users, _at(61))
    assert again == replace(_at(61), first_at=_AT)
    assert await _take(database_with_users, _at(62)) == PreviousRequest("hash", None, None)
    async with database_with_users.write(
        _ANN
    ) as connection:  # the first request was slow, not dead
        await idempotency_keys.store_response(connection, _FIRST, 202, "of the first")
        await idempotency_keys.release(connection, _FIRST)
    assert await _take(database_with_users, _at(63)) == PreviousRequest("hash", None, None)


async def test_old_keys_are_pruned(database_with_users: Database) -> None:
    await _take(database_with_users, _FIRST)
    await _take(database_with_users, _at(0, user_id=_BEN))
    async with database_with_users.write() as connection:
        await idempotency_keys.prune(connection, _AT)
    assert isinstance(await _take(database_with_users, _at(1)), PreviousRequest)
    async with database_with_users.write() as connection:
        await idempotency_keys.prune(connection, _AT + _MINUTE, _ANN)
    assert await _take(database_with_users, _at(1)) == _at(1)
    assert isinstance(await _take(database_with_users, _at(1, user_id=_BEN)), PreviousRequest)


async def test_keys_per_user_are_limited(
    database_with_users: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_keys, "MAX_KEYS", 3)
    for number in range(3):
        assert isinstance(await _take(database_with_users, _at(0, key=f"key-{number}")), KeyClaim)
    with pytest.raises(TooManyRequests):
        await _take(database_with_users, _at(0, key="key-3"))
    assert isinstance(await _take(database_with_users, _at(0, key="key-2")), PreviousRequest)
    assert isinstance(await _take(database_with_users, _at(0, user_id=_BEN)), KeyClaim)
