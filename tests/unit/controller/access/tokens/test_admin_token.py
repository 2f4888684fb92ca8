"""Test the local administrator's token."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.controller.access import ADMINISTRATOR, Access, Caller, RequestInfo, open_access
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.shared.domain import Role, Scope, User, UserId, now
from polydev.shared.errors import BadSettings, NotAllowed, NotSignedIn

TOKEN = "a-token-of-the-tests"


@pytest.fixture
async def access(store: Database, tmp_path: Path) -> Access:
    return await open_access(store, _settings(tmp_path, TOKEN))


def _settings(folder: Path, token: str | None = None) -> ControllerSettings:
    (folder / "controller").mkdir(exist_ok=True)
    admin_token = None if token is None else SecretStr(token)
    return ControllerSettings(state_dir=folder, admin_token=admin_token)


def request_with(authorization: str | None) -> RequestInfo:
    return RequestInfo(authorization, None, None, False, "127.0.0.1")


async def test_admin_token_authenticates_the_administrator(access: Access) -> None:
    for header in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
        assert (await access.authenticate(request_with(header))).user_id == ADMINISTRATOR


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
async def test_other_tokens_are_refused(access: Access, header: str | None) -> None:
    with pytest.raises(NotSignedIn) as caught:
        await access.authenticate(request_with(header))
    assert TOKEN not in caught.value.line()


def test_admin_token_is_held_only_as_a_hash(access: Access) -> None:
    assert TOKEN not in repr(vars(access)) + repr(vars(vars(access)["_local"]))


async def test_admin_token_file_is_created_once(store: Database, tmp_path: Path) -> None:
    await open_access(store, _settings(tmp_path))
    path = tmp_path / "controller" / "admin-token"
    token = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = await open_access(store, _settings(tmp_path))
    assert (await again.authenticate(request_with(f"Bearer {token}"))).user_id == ADMINISTRATOR
    assert not [it for it in path.parent.iterdir() if it.name.startswith(".")]


async def test_short_admin_token_is_refused(store: Database, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="POLYDEV_ADMIN_TOKEN"):
        await open_access(store, _settings(tmp_path, "short"))


def test_only_administrators_act_for_other_users() -> None:
    ann = User(UserId("ann"), "ann@example.test", now())
    caller = Caller(ann, frozenset(Scope), "sign-in", "")
    assert caller.resolve_user(None) == caller.resolve_user("ann") == "ann"
    with pytest.raises(NotAllowed):
        caller.resolve_user("bob")
    root = User(UserId("admin"), "admin@localhost", now(), Role.ADMINISTRATOR)
    assert Caller(root, frozenset(Scope), "local", "").resolve_user("bob") == "bob"
    with pytest.raises(NotAllowed):
        Caller(root, frozenset({Scope.READ}), "token:1", "").resolve_user("bob")
