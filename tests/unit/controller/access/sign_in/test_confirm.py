"""Test the confirmation before an account is deleted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, MakeAccess, from_browser

from polydev.controller.access import Caller
from polydev.controller.access.sign_in.sign_ins import VIA, NewSignIn
from polydev.controller.settings import SignUp
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import passwords, sign_ins
from polydev.shared.domain import Scope, now
from polydev.shared.errors import NotAllowed

ANN = "ann@example.org"


def _caller(new_sign_in: NewSignIn) -> Caller:
    return Caller(
        new_sign_in.user, frozenset(Scope), VIA, "192.0.2.7", new_sign_in.sign_in.sign_in_id
    )


async def _without_password(store: Database, age: timedelta) -> None:
    """Remove the password and age the sign-in, as for an OpenID user."""
    async with store.write() as connection:
        await connection.execute(sa.delete(passwords))
        await connection.execute(sa.update(sign_ins).values(created_at=now() - age))


async def test_only_the_right_password_confirms(make_access: MakeAccess) -> None:
    access = await make_access(sign_up=SignUp.OPEN)
    new_sign_in = await access.accounts.sign_up(ANN, PASSWORD, None, from_browser(changes=True))
    await access.accounts.confirm(_caller(new_sign_in), PASSWORD)
    for wrong in (None, "", "not the password"):
        with pytest.raises(NotAllowed, match="password is wrong"):
            await access.accounts.confirm(_caller(new_sign_in), wrong)


async def test_token_cannot_confirm(make_access: MakeAccess) -> None:
    access = await make_access(sign_up=SignUp.OPEN)
    new_sign_in = await access.accounts.sign_up(ANN, PASSWORD, None, from_browser(changes=True))
    with pytest.raises(NotAllowed, match="sign-in"):
        await access.accounts.confirm(replace(_caller(new_sign_in), sign_in_id=None), PASSWORD)


@pytest.mark.parametrize(("minutes", "is_enough"), [(1, True), (11, False)])
async def test_account_without_password_needs_a_recent_sign_in(
    make_access: MakeAccess, store: Database, minutes: int, is_enough: bool
) -> None:
    access = await make_access(sign_up=SignUp.OPEN)
    new_sign_in = await access.accounts.sign_up(ANN, PASSWORD, None, from_browser(changes=True))
    await _without_password(store, timedelta(minutes=minutes))
    if is_enough:
        await access.accounts.confirm(_caller(new_sign_in), None)
    else:
        with pytest.raises(NotAllowed, match="too old"):
            await access.accounts.confirm(_caller(new_sign_in), None)
