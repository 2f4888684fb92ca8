"""Who asks: the administrator, and nobody else."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.access import ADMINISTRATOR, Access, Asked, Caller, kept_key, open_access
from polydev.domain import Person, PersonId, Role, Scope, now
from polydev.errors import BadSettings, NotAllowed, NotSignedIn
from polydev.store.database import Database, open_database

TOKEN = "a-token-of-the-tests"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(None, tmp_path)
    await database.upgrade()
    yield database
    await database.close()


@pytest.fixture
async def access(store: Database, tmp_path: Path) -> Access:
    return await open_access(store, tmp_path, SecretStr(TOKEN))


def asked(authorization: str | None) -> Asked:
    return Asked(authorization, None, None, False, "127.0.0.1")


async def test_the_token_is_the_administrators(access: Access) -> None:
    for header in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
        assert (await access.caller(asked(header))).user_id == ADMINISTRATOR


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer " + "x" * 10_000,
        "Bearer \udcff",
    ],
)
async def test_nothing_else_is_anybodys(access: Access, header: str | None) -> None:
    with pytest.raises(NotSignedIn) as caught:
        await access.caller(asked(header))
    assert TOKEN not in caught.value.line()


def test_the_token_is_not_kept_in_memory_as_it_is(access: Access) -> None:
    assert TOKEN not in repr(vars(access))


async def test_a_token_is_made_once_and_kept(store: Database, tmp_path: Path) -> None:
    await open_access(store, tmp_path, None)
    path = tmp_path / "admin-token"
    token = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = await open_access(store, tmp_path, None)
    assert (await again.caller(asked(f"Bearer {token}"))).user_id == ADMINISTRATOR
    assert {it.name for it in tmp_path.iterdir()} & {"admin-token"} == {"admin-token"}
    assert not [it for it in tmp_path.iterdir() if it.name.startswith(".")]


async def test_a_token_that_is_too_short_is_refused(store: Database, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="POLYDEV_ADMIN_TOKEN"):
        await open_access(store, tmp_path, SecretStr("short"))


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = kept_key(tmp_path / "key")
    assert len(first) == 32
    assert kept_key(tmp_path / "key") == first
    assert kept_key(tmp_path / "other") != first


def test_only_an_administrator_acts_for_somebody_else() -> None:
    ann = Person(PersonId("ann"), "ann@example.test", now())
    caller = Caller(ann, frozenset(Scope), "sign-in", "")
    assert caller.whom(None) == caller.whom("ann") == "ann"
    with pytest.raises(NotAllowed):
        caller.whom("bob")
    root = Person(PersonId("admin"), "admin@localhost", now(), Role.ADMINISTRATOR)
    assert Caller(root, frozenset(Scope), "local", "").whom("bob") == "bob"
    with pytest.raises(NotAllowed):
        Caller(root, frozenset({Scope.READ}), "token:1", "").whom("bob")
