"""Test sign-up, sign-in, password changes and roles."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, TOKEN, MakeAccess, from_browser, quick_passwords, with_token

from polydev.controller.access import Access, Caller
from polydev.controller.access.sign_in.sign_ins import NewSignIn
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import audit_log, events, metadata, passwords
from polydev.shared.domain import Role, Scope, UserId
from polydev.shared.errors import (
    AlreadyExists,
    BadRequest,
    NoSuchToken,
    NoSuchUser,
    NotAllowed,
    NotSignedIn,
    PasswordRefused,
)

ANN = "ann@example.test"
WRONG = "The e-mail address or the password is wrong"


async def _ann(access: Access) -> NewSignIn:
    return await access.accounts.sign_up(ANN, PASSWORD, None, from_browser())


async def _root(access: Access) -> Caller:
    return await access.authenticate(with_token(TOKEN))


async def _entries(store: Database) -> list[tuple[str, str, str]]:
    wanted = sa.select(audit_log.c.actor, audit_log.c.action, audit_log.c.subject)
    async with store.read() as connection:
        rows = await connection.execute(wanted.order_by(audit_log.c.entry_id))
        return [(row.actor, row.action, row.subject) for row in rows]


async def test_sign_up_signs_in_and_allows_later_sign_in(access: Access, store: Database) -> None:
    new_sign_in = await _ann(access)
    caller = await access.authenticate(from_browser(new_sign_in.secret))
    assert (caller.user.email, caller.user.role, caller.via) == (ANN, Role.USER, "sign-in")
    again = await access.accounts.sign_in("ANN@Example.test", PASSWORD, from_browser())
    assert again.user.user_id == caller.user_id
    assert again.secret != new_sign_in.secret
    user_id = caller.user_id
    assert await _entries(store) == [
        (user_id, "account.sign-up", user_id),
        (user_id, "account.sign-in", user_id),
    ]


async def test_address_has_one_account(access: Access) -> None:
    await _ann(access)
    for address in (ANN, "Ann@EXAMPLE.test"):
        with pytest.raises(AlreadyExists):
            await access.accounts.sign_up(address, PASSWORD, None, from_browser())


async def test_concurrent_sign_ups_with_one_address_create_one_account(access: Access) -> None:
    outcomes = await asyncio.gather(*(_ann(access) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(it, NewSignIn) for it in outcomes) == 1
    assert sum(isinstance(it, AlreadyExists) for it in outcomes) == 3


async def test_weak_password_creates_no_account(access: Access) -> None:
    with pytest.raises(PasswordRefused):
        await access.accounts.sign_up(ANN, "short", None, from_browser())
    with pytest.raises(BadRequest):
        await access.accounts.sign_up("nobody", PASSWORD, None, from_browser())
    await _ann(access)


async def test_wrong_password_and_unknown_address_get_the_same_error(
    access: Access, store: Database
) -> None:
    ann = (await _ann(access)).user.user_id
    for address, password in ((ANN, "another password"), ("ben@example.test", PASSWORD)):
        with pytest.raises(NotSignedIn) as caught:
            await access.accounts.sign_in(address, password, from_browser())
        assert caught.value.line() == WRONG
    _, known, unknown = await _entries(store)
    assert known[:2] == unknown[:2] == ("nobody", "account.sign-in-refused")
    assert known[2] != unknown[2]
    assert "@" not in known[2] + unknown[2]
    async with store.read() as connection:
        wanted = sa.select(audit_log.c.owner).order_by(audit_log.c.entry_id)
        owners = (await connection.execute(wanted)).scalars().all()
    assert owners == [ann, ann, None]


async def test_sign_up_needs_an_invitation_by_default(make_access: MakeAccess) -> None:
    access = await make_access()
    for code in (None, "", "pdi_made-up", "\ud800"):
        with pytest.raises(NotAllowed, match="invitation"):
            await access.accounts.sign_up(ANN, PASSWORD, code, from_browser())
    invitation, code = await access.invitations.create(
        await _root(access), None, Role.ADMINISTRATOR, timedelta(days=1)
    )
    new_sign_in = await access.accounts.sign_up(ANN, PASSWORD, code, from_browser())
    assert new_sign_in.user.role is Role.ADMINISTRATOR
    (await access.authenticate(from_browser(new_sign_in.secret))).require(Scope.ADMIN)
    with pytest.raises(NotAllowed, match="used"):
        await access.accounts.sign_up("ben@example.test", PASSWORD, code, from_browser())
    [row] = await access.invitations.list_all()
    assert (row.invitation_id, row.used_by) == (invitation.invitation_id, new_sign_in.user.user_id)
    with pytest.raises(NoSuchToken):
        await access.invitations.revoke(await _root(access), row.invitation_id)


async def test_invitation_is_limited_to_address_and_time_and_can_be_revoked(
    make_access: MakeAccess,
) -> None:
    access = await make_access()
    root = await _root(access)
    anns = await access.invitations.create(root, "ANN@example.test", Role.USER, timedelta(1))
    with pytest.raises(NotAllowed, match="another e-mail"):
        await access.accounts.sign_up("ben@example.test", PASSWORD, anns[1], from_browser())
    late = await access.invitations.create(root, None, Role.USER, timedelta(0))
    gone = await access.invitations.create(root, None, Role.USER, timedelta(1))
    await access.invitations.revoke(root, gone[0].invitation_id)
    for _, code in (late, gone):
        with pytest.raises(NotAllowed, match="expired"):
            await access.accounts.sign_up("ben@example.test", PASSWORD, code, from_browser())
    assert (await access.accounts.sign_up(ANN, PASSWORD, anns[1], from_browser())).secret


@pytest.mark.parametrize("how", ["disabled", "demoted"])
async def test_invitations_of_former_administrators_are_void(
    make_access: MakeAccess, how: str
) -> None:
    access = await make_access(sign_up="open")
    root, ann = await _root(access), (await _ann(access)).user.user_id
    await access.administration.set_role(root, ann, Role.ADMINISTRATOR)
    new_sign_in = await access.accounts.sign_in(ANN, PASSWORD, from_browser())
    caller = await access.authenticate(from_browser(new_sign_in.secret))
    _, code = await access.invitations.create(caller, None, Role.ADMINISTRATOR, timedelta(days=1))
    if how == "disabled":
        await access.administration.disable(root, ann)
    else:
        await access.administration.set_role(root, ann, Role.USER)
    with pytest.raises(NotAllowed, match="Invalid"):
        await access.accounts.sign_up("anns-other@example.test", PASSWORD, code, from_browser())


async def test_invitation_works_once(make_access: MakeAccess) -> None:
    access = await make_access()
    _, code = await access.invitations.create(
        await _root(access), None, Role.USER, timedelta(days=1)
    )
    outcomes = await asyncio.gather(
        *(
            access.accounts.sign_up(f"p{number}@example.test", PASSWORD, code, from_browser())
            for number in range(4)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(it, NewSignIn) for it in outcomes) == 1
    assert len(await access.administration.users()) == 2  # and the local administrator


async def test_closed_sign_up_refuses_invitations(make_access: MakeAccess) -> None:
    access = await make_access(sign_up="closed")
    _, code = await access.invitations.create(
        await _root(access), None, Role.USER, timedelta(days=1)
    )
    with pytest.raises(NotAllowed, match="closed"):
        await access.accounts.sign_up(ANN, PASSWORD, code, from_browser())


async def test_password_change_ends_other_sign_ins_and_lists_tokens(
    access: Access, store: Database
) -> None:
    other = await _ann(access)
    own = await access.accounts.sign_in(ANN, PASSWORD, from_browser())
    caller = await access.authenticate(from_browser(own.secret))
    token, text = await access.tokens.create(caller, "ci", frozenset({Scope.READ}), None)
    done = await access.accounts.change_password(caller, PASSWORD, "a quite different one")
    assert (done.sign_ins_ended, [it.token_id for it in done.valid_tokens]) == (1, [token.token_id])
    assert (await access.authenticate(from_browser(own.secret))).user_id == caller.user_id
    assert (await access.authenticate(with_token(text))).user_id == caller.user_id
    with pytest.raises(NotSignedIn):
        await access.authenticate(from_browser(other.secret))
    with pytest.raises(NotSignedIn):
        await access.accounts.sign_in(ANN, PASSWORD, from_browser())
    await access.accounts.sign_in(ANN, "a quite different one", from_browser())
    assert (caller.user_id, "account.password-change", caller.user_id) in await _entries(store)
    async with store.read() as connection:
        message = (await connection.execute(sa.select(events.c.kind, events.c.data))).all()
    assert ("account", {"status": "password-changed"}) in [tuple(it) for it in message]


async def test_password_change_needs_current_password_and_sign_in(access: Access) -> None:
    caller = await access.authenticate(from_browser((await _ann(access)).secret))
    with pytest.raises(NotAllowed, match="current password"):
        await access.accounts.change_password(caller, "a wrong password", "a quite different one")
    with pytest.raises(PasswordRefused):
        await access.accounts.change_password(caller, PASSWORD, ANN)
    _, text = await access.tokens.create(caller, "all", frozenset({Scope.ACCOUNT}), None)
    for script in (await access.authenticate(with_token(text)), await _root(access)):
        with pytest.raises(NotAllowed, match="sign-in"):
            await access.accounts.change_password(script, PASSWORD, "a quite different one")
    await access.accounts.sign_in(ANN, PASSWORD, from_browser())


async def test_sign_in_upgrades_an_old_hash(make_access: MakeAccess, store: Database) -> None:
    await _ann(await make_access(quick_passwords(1), sign_up="open"))
    wanted = sa.select(passwords.c.hash)
    later = await make_access(quick_passwords(2))
    await later.accounts.sign_in(ANN, PASSWORD, from_browser())
    async with store.read() as connection:
        assert ",t=2," in (await connection.execute(wanted)).scalar_one()
    await later.accounts.sign_in(ANN, PASSWORD, from_browser())


async def test_disabled_user_loses_access_at_once(access: Access) -> None:
    root, new_sign_in = await _root(access), await _ann(access)
    caller = await access.authenticate(from_browser(new_sign_in.secret))
    _, text = await access.tokens.create(caller, "ci", frozenset({Scope.READ}), None)
    assert (await access.administration.disable(root, caller.user_id)).disabled_at is not None
    for request in (from_browser(new_sign_in.secret), with_token(text)):
        with pytest.raises(NotSignedIn):
            await access.authenticate(request)
    with pytest.raises(NotSignedIn, match="disabled"):
        await access.accounts.sign_in(ANN, PASSWORD, from_browser())
    with pytest.raises(NotSignedIn) as caught:  # the answer reveals no account
        await access.accounts.sign_in(ANN, "a wrong password", from_browser())
    assert caught.value.line() == WRONG
    assert (await access.administration.enable(root, caller.user_id)).disabled_at is None
    assert (await access.authenticate(with_token(text))).user_id == caller.user_id
    with pytest.raises(NotSignedIn):
        await access.authenticate(from_browser(new_sign_in.secret))


async def test_role_change_applies_to_the_next_request(access: Access) -> None:
    root, new_sign_in = await _root(access), await _ann(access)
    user_id = new_sign_in.user.user_id
    await access.administration.set_role(root, user_id, Role.ADMINISTRATOR)
    caller = await access.authenticate(from_browser(new_sign_in.secret))
    caller.require(Scope.ADMIN)
    _, text = await access.tokens.create(caller, "root", frozenset({Scope.ADMIN}), None)
    await access.administration.set_role(root, user_id, Role.USER)
    for request in (from_browser(new_sign_in.secret), with_token(text)):
        with pytest.raises(NotAllowed):
            (await access.authenticate(request)).require(Scope.ADMIN)


async def test_local_administrator_cannot_be_changed(access: Access) -> None:
    root = await _root(access)
    for refused in (
        access.administration.disable(root, root.user_id),
        access.administration.set_role(root, root.user_id, Role.USER),
    ):
        with pytest.raises(NotAllowed, match="local administrator"):
            await refused
    with pytest.raises(NoSuchUser):
        await access.administration.disable(root, UserId("nobody"))


async def test_other_sites_cannot_sign_in(access: Access) -> None:
    await _ann(access)
    for origin in ("https://evil.test", "null", "http://localhost:4001", "https://localhost:4000"):
        elsewhere = from_browser(origin=origin)
        for attempt in (
            access.accounts.sign_in(ANN, PASSWORD, elsewhere),
            access.accounts.sign_up("ben@example.test", PASSWORD, None, elsewhere),
        ):
            with pytest.raises(NotAllowed, match="another site"):
                await attempt


async def test_secrets_are_neither_stored_nor_shown(access: Access, store: Database) -> None:
    new_sign_in = await _ann(access)
    caller = await access.authenticate(from_browser(new_sign_in.secret))
    _, token = await access.tokens.create(caller, "ci", frozenset({Scope.READ}), None)
    _, code = await access.invitations.create(await _root(access), None, Role.USER, timedelta(1))
    secrets = [PASSWORD, new_sign_in.secret, token.split("_", 2)[2], code.removeprefix("pdi_")]
    message = repr((new_sign_in, caller, access.sign_ins, from_browser(new_sign_in.secret)))
    async with store.read() as connection:
        for table in metadata.tables.values():
            message += repr((await connection.execute(sa.select(table))).all())
    assert not [it for it in secrets if it in message]
