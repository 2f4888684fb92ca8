"""Test validation and hashing of passwords, and e-mail addresses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from access_world import quick_passwords
from argon2 import PasswordHasher, extract_parameters
from argon2.profiles import RFC_9106_LOW_MEMORY
from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.access import email_addresses
from polydev.controller.access.sign_in import passwords
from polydev.controller.access.sign_in.passwords import Passwords
from polydev.shared.errors import BadRequest, PasswordRefused, PolydevError, TooManyRequests

ANN = "ann@example.test"
GOOD = "correct horse battery"


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("short", "fewer than 12"),
        ("elevenchars", "fewer than 12"),
        ("é" * 11, "fewer than 12"),
        ("abcdefgh" * 33, "more than 256 bytes"),
        ("🦀bcdefghijkl" * 20, "more than 256 bytes"),
        ("abababababababab", "repeats"),
        ("ann@example.test", "e-mail address"),
        ("ANN@Example.Test", "e-mail address"),
    ],
)
def test_weak_password_is_refused(password: str, message: str) -> None:
    with pytest.raises(PasswordRefused, match=message) as caught:
        passwords.validate_new(password, ANN)
    assert password not in caught.value.line()


def test_any_characters_are_allowed() -> None:
    for password in (GOOD, "пароль из слов и ещё", "  blanks count too  ", "0123456789ab"):
        assert passwords.validate_new(password, ANN)


async def test_composed_characters_are_normalized() -> None:
    ours = quick_passwords()
    stored = await ours.hash(passwords.validate_new("caf\u00e9 caf\u00e9 caf\u00e9", ANN))
    assert await ours.matches("cafe\u0301 cafe\u0301 cafe\u0301", stored)


async def test_hash_uses_argon2id_second_profile() -> None:
    stored = await Passwords().hash(GOOD)
    assert stored.startswith("$argon2id$")
    assert extract_parameters(stored) == RFC_9106_LOW_MEMORY
    assert GOOD not in stored


async def test_only_the_password_matches() -> None:
    ours = quick_passwords()
    stored = await ours.hash(GOOD)
    assert await ours.matches(GOOD, stored)
    for other in ("", GOOD + " ", GOOD.upper(), "x" * 10_000, "\ud800" * 12):
        assert not await ours.matches(other, stored)
    assert not await ours.matches(GOOD, "damaged")


async def test_weaker_hash_is_upgraded() -> None:
    before, after = quick_passwords(1), quick_passwords(2)
    stored = await before.hash(GOOD)
    renewed = await after.rehash(GOOD, stored)
    assert renewed is not None
    assert extract_parameters(renewed).time_cost == 2
    assert await after.matches(GOOD, renewed)
    assert await after.rehash(GOOD, renewed) is None


class _Counting(PasswordHasher):
    """Counts verifications, their effort and their concurrency."""

    def __init__(self) -> None:
        super().__init__(time_cost=8, memory_cost=1024, parallelism=1)
        self.verified: list[int] = []
        self.now = self.most = 0

    def verify(self, hash: Any, password: Any) -> Any:
        self.verified.append(extract_parameters(hash).time_cost)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return super().verify(hash, password)
        finally:
            self.now -= 1


async def test_unknown_user_takes_the_same_effort() -> None:
    counting = _Counting()
    ours = Passwords(counting)
    await ours.prepare()
    assert not await ours.matches(GOOD, await ours.hash("another password"))
    assert not await ours.matches(GOOD, None)
    assert counting.verified == [8, 8]


async def test_two_passwords_are_verified_concurrently() -> None:
    counting = _Counting()
    ours = Passwords(counting)
    stored = await ours.hash(GOOD)
    assert all(await asyncio.gather(*(ours.matches(GOOD, stored) for _ in range(12))))
    assert counting.most == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("Ann@Example.TEST", "ann@example.test"),
        ("  ann@example.test\n", "ann@example.test"),
        ("ann@EXAMPLE.test", "ann@example.test"),
        ("ann@bücher.test", "ann@xn--bcher-kva.test"),
        ("ann@bu\u0308cher.test", "ann@xn--bcher-kva.test"),
        ("jos\u0065\u0301@example.test", "jos\u00e9@example.test"),
        ("a.b+c@example.test", "a.b+c@example.test"),
        ("admin@localhost", "admin@localhost"),
    ],
)
def test_addresses_are_normalized(text: str, address: str) -> None:
    assert email_addresses.normalize(text) == address
    assert email_addresses.normalize(address) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "ann", "ann@", "@example.test", "a b@example.test", "a@b@example.test"),
        *("ann\x00@example.test", "ann@exa mple.test", "ann@-x.test", "\ud800@example.test"),
        *("<ann@example.test>", "ann@example..test", "x" * 65 + "@example.test"),
        "a@" + ".".join(["x" * 60] * 5),
    ],
)
def test_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        email_addresses.normalize(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_normalized_or_refused(local: str, domain: str) -> None:
    try:
        address = email_addresses.normalize(f"{local}@{domain}")
    except PolydevError:
        return
    assert email_addresses.normalize(address) == address
    assert address.isprintable()
    address.encode()


async def test_password_queue_is_bounded() -> None:
    ours = quick_passwords()
    stored = await ours.hash(GOOD)
    together = await asyncio.gather(
        *(ours.matches(GOOD, stored) for _ in range(100)), return_exceptions=True
    )
    assert together.count(True) == 34
    assert sum(isinstance(it, TooManyRequests) for it in together) == 66
    assert await ours.matches(GOOD, stored)  # they are gone
