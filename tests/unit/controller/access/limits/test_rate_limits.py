"""Test rate limits, which controllers share through the database."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, TOKEN, MakeAccess, from_browser, with_token

from polydev.controller.access import Access
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import rate_limits
from polydev.controller.store.queries.accounts.rate_limits import Bucket
from polydev.controller.store.tables import rate_limits as rows
from polydev.shared.domain import now
from polydev.shared.errors import NotSignedIn, TooManyRequests

ANN = "ann@example.test"


async def _attempts(
    access: Access, count: int, address: str = ANN, source: str = "192.0.2.7"
) -> int:
    """Return how many wrong passwords are checked before the limit."""
    for done in range(count):
        try:
            await access.accounts.sign_in(address, PASSWORD, from_browser(source=source))
        except NotSignedIn:
            continue
        except TooManyRequests:
            return done
    return count


async def test_bucket_empties_and_refills(store: Database) -> None:
    bucket, at = Bucket("b", capacity=2, per_s=0.1), now()

    async def take(seconds: float) -> float:
        async with store.write() as connection:
            return await rate_limits.take(connection, [bucket], at + timedelta(seconds=seconds))

    assert [await take(0), await take(0), await take(0)] == [0, 0, pytest.approx(10)]
    assert await take(4) == pytest.approx(6)
    assert await take(10) == 0
    assert await take(-100) == pytest.approx(10)  # another controller's clock
    assert [await take(10_000), await take(10_000)] == [0, 0]
    assert await take(10_000) == pytest.approx(10)


async def test_several_buckets_give_all_or_nothing(store: Database) -> None:
    full, empty = Bucket("full", 1, 0.1), Bucket("empty", 1, 0.1)
    async with store.write() as connection:
        assert await rate_limits.take(connection, [empty], now()) == 0
        assert await rate_limits.take(connection, [full, empty], now()) > 0
        assert await rate_limits.take(connection, [full], now()) == 0


async def test_concurrent_takes_do_not_exceed_capacity(store: Database) -> None:
    async def take(buckets: list[Bucket]) -> float:
        async with store.write() as connection:
            return await rate_limits.take(connection, buckets, now())

    for number in range(10):  # the order of the rows is random
        buckets = [Bucket(f"a{number}", 5, 0.001), Bucket(f"b{number}", 50, 0.001)]
        waits = await asyncio.gather(*(take(buckets[::turn]) for turn in (1, -1) * 10))
        assert waits.count(0) == 5


async def test_bucket_in_use_is_not_pruned(store: Database) -> None:
    old, new = Bucket("old", 1, 0.1), Bucket("new", 1, 0.1)
    async with store.write() as connection:
        await rate_limits.take(connection, [old], now() - timedelta(days=2))
    async with store.write() as connection:
        assert await rate_limits.take(connection, [old, new], now()) == 0
        assert await rate_limits.take(connection, [old], now()) > 0


async def test_full_buckets_are_pruned(store: Database) -> None:
    async with store.write() as connection:
        await rate_limits.take(connection, [Bucket("old", 1, 1)], now() - timedelta(days=2))
        await rate_limits.take(connection, [Bucket("new", 1, 1)], now())
        assert (await connection.execute(sa.select(rows.c.key))).scalars().all() == ["new"]


async def test_sign_in_attempts_are_limited_per_address(
    make_access: MakeAccess,
) -> None:
    first, second = await make_access(), await make_access()
    assert await _attempts(first, 6, source="192.0.2.1") == 6
    assert await _attempts(second, 20, ANN.upper(), source="192.0.2.2") == 4
    assert await _attempts(second, 3, "ben@example.test", source="192.0.2.2") == 3


async def test_sign_in_attempts_are_limited_per_network(
    make_access: MakeAccess,
) -> None:
    access = await make_access(sign_ins_per_hour=18)
    done = [
        await _attempts(access, 1, f"p{number}@example.test", f"2001:db8::{number}")
        for number in range(5)
    ]
    assert done == [1, 1, 1, 0, 0]
    assert await _attempts(access, 1, "p9@example.test", "2001:db8:0:1::1") == 1


async def test_rate_limit_also_refuses_the_right_password(
    access: Access,
) -> None:
    await access.accounts.sign_up(ANN, PASSWORD, None, from_browser(source="192.0.2.1"))
    for _ in range(10):
        await access.accounts.sign_in(ANN, PASSWORD, from_browser(source="192.0.2.1"))
    with pytest.raises(TooManyRequests, match="sign-in"):
        await access.accounts.sign_in(ANN, PASSWORD, from_browser(source="192.0.2.1"))


async def test_attacker_elsewhere_cannot_lock_out_a_signed_in_user(
    access: Access,
) -> None:
    await access.accounts.sign_up(ANN, PASSWORD, None, from_browser(source="2001:db8::1"))
    for number in range(12):
        source = f"192.0.2.{number}"
        with pytest.raises(NotSignedIn if number < 10 else TooManyRequests):
            await access.accounts.sign_in(ANN, "a wrong password", from_browser(source=source))
    assert (await access.accounts.sign_in(ANN, PASSWORD, from_browser(source="2001:db8::2"))).secret
    with pytest.raises(TooManyRequests):
        await access.accounts.sign_in(ANN, PASSWORD, from_browser(source="2001:db8:1::1"))


async def test_refused_attempt_leaves_no_rows(make_access: MakeAccess, store: Database) -> None:
    access = await make_access(sign_ins_per_hour=6)
    assert await _attempts(access, 2) == 1
    for number in range(5):  # unknown names
        assert await _attempts(access, 1, f"p{number}@example.test") == 0
    async with store.read() as connection:
        found = (await connection.execute(sa.select(rows.c.key))).scalars().all()
    assert len(found) == 2, found  # rows of the network and of the requested address


async def test_sign_ups_are_rate_limited(make_access: MakeAccess) -> None:
    access = await make_access(sign_up="open", sign_ups_per_hour=12)
    for number in range(2):
        await access.accounts.sign_up(f"p{number}@example.test", PASSWORD, None, from_browser())
    with pytest.raises(TooManyRequests) as caught:
        await access.accounts.sign_up("p3@example.test", PASSWORD, None, from_browser())
    assert 290 <= caught.value.retry_after_s <= 300


async def test_connect_sessions_are_limited_except_for_the_local_administrator(
    make_access: MakeAccess,
) -> None:
    access = await make_access(sign_up="open", connects_per_hour=12)
    for name in ("ann", "ben"):
        new_sign_in = await access.accounts.sign_up(
            f"{name}@example.test", PASSWORD, None, from_browser()
        )
        caller = await access.authenticate(from_browser(new_sign_in.secret))
        for _ in range(2):
            await access.limits.check_connect(caller)
        with pytest.raises(TooManyRequests, match="connect"):
            await access.limits.check_connect(caller)
    for _ in range(30):
        await access.limits.check_connect(await access.authenticate(with_token(TOKEN)))
