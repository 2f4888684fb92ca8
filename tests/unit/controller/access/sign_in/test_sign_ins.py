"""Test browser sign-ins: cookies, expiry and CSRF protection."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, MakeAccess, from_browser

from polydev.controller.access import Access
from polydev.controller.access.limits.csrf import csrf_token
from polydev.controller.access.sign_in.sign_ins import NewSignIn
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import sign_ins
from polydev.shared.domain import now
from polydev.shared.errors import NoSuchToken, NotAllowed, NotSignedIn

PUBLIC = "https://polydev.example.test"


async def _signed_in(access: Access, name: str = "ann", cookie: str | None = None) -> NewSignIn:
    request = from_browser(cookie, origin=None, user_agent="Browser/1 " + "x" * 999)
    return await access.accounts.sign_up(f"{name}@example.test", PASSWORD, None, request)


async def _backdate(store: Database, **columns: datetime) -> None:
    async with store.write() as connection:
        await connection.execute(sa.update(sign_ins).values(**columns))


async def _seen_at(store: Database) -> datetime:
    async with store.read() as connection:
        found: datetime = (await connection.execute(sa.select(sign_ins.c.seen_at))).scalar_one()
    return found


async def test_write_needs_csrf_token_and_own_origin(access: Access) -> None:
    new_sign_in = await _signed_in(access)
    right = csrf_token(new_sign_in.secret)
    assert (
        await access.authenticate(from_browser(new_sign_in.secret, changes=True, csrf=right))
    ).sign_in_id
    script = from_browser(new_sign_in.secret, changes=True, csrf=right, origin=None)
    assert (await access.authenticate(script)).sign_in_id
    for csrf in (None, "", "x", right[:-1], right.upper(), new_sign_in.secret, "\udcff"):
        with pytest.raises(NotAllowed, match="X-CSRF-Token"):
            await access.authenticate(from_browser(new_sign_in.secret, changes=True, csrf=csrf))
    for origin in ("https://evil.test", "null", "", "http://localhost:4000.evil.test"):
        with pytest.raises(NotAllowed, match="another site"):
            await access.authenticate(
                from_browser(new_sign_in.secret, changes=True, csrf=right, origin=origin)
            )


async def test_csrf_token_is_per_sign_in_and_hides_the_cookie(
    access: Access,
) -> None:
    ann, ben = await _signed_in(access), await _signed_in(access, "ben")
    assert csrf_token(ann.secret) != csrf_token(ben.secret)
    assert ann.secret not in csrf_token(ann.secret)
    with pytest.raises(NotAllowed):
        await access.authenticate(
            from_browser(ann.secret, changes=True, csrf=csrf_token(ben.secret))
        )


async def test_read_needs_only_the_cookie(access: Access) -> None:
    new_sign_in = await _signed_in(access)
    caller = await access.authenticate(from_browser(new_sign_in.secret, origin="https://evil.test"))
    assert caller.user_id == new_sign_in.user.user_id


async def test_websocket_with_cookie_needs_own_origin(access: Access) -> None:
    new_sign_in = await _signed_in(access)
    assert (await access.authenticate(from_browser(new_sign_in.secret, websocket=True))).sign_in_id
    for origin in (None, "https://evil.test", "null", "http://127.0.0.1:4000"):
        with pytest.raises(NotAllowed):
            await access.authenticate(
                from_browser(new_sign_in.secret, websocket=True, origin=origin)
            )


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        (PUBLIC, "polydev.example.test", True),
        (PUBLIC.upper(), "polydev.example.test", True),
        (PUBLIC, "127.0.0.1:4000", True),  # a proxy that does not pass the name on
        ("http://127.0.0.1:4000", "127.0.0.1:4000", True),
        ("http://polydev.example.test", "polydev.example.test", False),
        ("https://polydev.example.test:8443", "polydev.example.test", False),
        ("https://evil.polydev.example.test", "polydev.example.test", False),
        ("https://127.0.0.1:4000", "127.0.0.1:4000", False),
    ],
)
async def test_public_url_is_an_own_origin(
    make_access: MakeAccess, origin: str, host: str, ours: bool
) -> None:
    access = await make_access(sign_up="open", public_url=PUBLIC)
    secret = (await _signed_in(access)).secret
    request = from_browser(secret, changes=True, csrf=csrf_token(secret), origin=origin, host=host)
    if ours:
        assert (await access.authenticate(request)).sign_in_id
    else:
        with pytest.raises(NotAllowed):
            await access.authenticate(request)


def test_public_url_is_normalized_like_browsers_do() -> None:
    for given, own in (
        ("https://Polydev.example.test:443", PUBLIC),
        ("http://polydev.example.test:80", "http://polydev.example.test"),
        ("https://polydev.example.test:8443", "https://polydev.example.test:8443"),
        (None, "http://localhost:4000"),
    ):
        assert ControllerSettings(public_url=given).own_url == own


async def test_https_cookie_has_the_host_prefix(make_access: MakeAccess) -> None:
    secure = (await make_access(public_url=PUBLIC)).cookies
    assert (secure.secure, secure.sign_in) == (True, "__Host-polydev_sign_in")
    assert secure.get_sign_in({"polydev_sign_in": "put there by somebody on the way"}) is None
    plain = (await make_access()).cookies
    assert (plain.secure, plain.sign_in) == (False, "polydev_sign_in")


async def test_only_valid_secrets_authenticate(access: Access) -> None:
    new_sign_in = await _signed_in(access)
    for cookie in (
        new_sign_in.secret + "x",
        new_sign_in.secret[:-1],
        "x" * 9000,
        "\udcff",
        new_sign_in.secret[::-1],
    ):
        with pytest.raises(NotSignedIn):
            await access.authenticate(from_browser(cookie))
    with pytest.raises(NotSignedIn):  # an empty header does not replace the cookie
        await access.authenticate(from_browser(new_sign_in.secret, authorization="Basic abc"))


async def test_sign_in_expires_by_idleness_and_age(
    make_access: MakeAccess, store: Database
) -> None:
    access = await make_access(sign_up="open", sign_in_idle_s=600, sign_in_limit_s=3600)
    secret = (await _signed_in(access)).secret
    await _backdate(store, seen_at=now() - timedelta(seconds=590))
    assert (await access.authenticate(from_browser(secret))).sign_in_id
    await _backdate(store, seen_at=now() - timedelta(seconds=601))
    with pytest.raises(NotSignedIn, match="ended"):
        await access.authenticate(from_browser(secret))
    await _backdate(store, seen_at=now(), expires_at=now())
    with pytest.raises(NotSignedIn, match="ended"):
        await access.authenticate(from_browser(secret))


async def test_last_use_is_written_once_a_minute(access: Access, store: Database) -> None:
    secret = (await _signed_in(access)).secret
    before = await _seen_at(store)
    await access.authenticate(from_browser(secret))
    assert await _seen_at(store) == before
    long_ago = now() - timedelta(seconds=61)
    await _backdate(store, seen_at=long_ago)
    await access.authenticate(from_browser(secret))
    assert await _seen_at(store) >= before


async def test_sign_out_ends_this_sign_in(access: Access) -> None:
    new_sign_in = await _signed_in(access)
    other = await access.accounts.sign_in(new_sign_in.user.email, PASSWORD, from_browser())
    await access.accounts.sign_out(await access.authenticate(from_browser(new_sign_in.secret)))
    with pytest.raises(NotSignedIn):
        await access.authenticate(from_browser(new_sign_in.secret))
    assert (await access.authenticate(from_browser(other.secret))).sign_in_id


async def test_new_sign_in_replaces_the_browsers_old_one(access: Access) -> None:
    first = await _signed_in(access)
    second = await _signed_in(access, "ben", cookie=first.secret)
    with pytest.raises(NotSignedIn):
        await access.authenticate(from_browser(first.secret))
    assert (await access.authenticate(from_browser(second.secret))).user_id == second.user.user_id


async def test_users_list_and_end_only_their_own_sign_ins(access: Access) -> None:
    ann, ben = await _signed_in(access), await _signed_in(access, "ben")
    other = await access.accounts.sign_in(ann.user.email, PASSWORD, from_browser())
    caller = await access.authenticate(from_browser(ann.secret))
    listed = await access.sign_ins.list_for(caller)
    assert {it.sign_in_id for it in listed} == {ann.sign_in.sign_in_id, other.sign_in.sign_in_id}
    assert all(len(it.user_agent) <= 256 for it in listed)
    for unknown in (ben.sign_in.sign_in_id, "none"):
        with pytest.raises(NoSuchToken):
            await access.sign_ins.end(caller, unknown)
    await access.sign_ins.end(caller, other.sign_in.sign_in_id)
    with pytest.raises(NotSignedIn):
        await access.authenticate(from_browser(other.secret))
    assert (await access.authenticate(from_browser(ben.secret))).user_id == ben.user.user_id


async def test_expired_sign_ins_are_pruned(access: Access, store: Database) -> None:
    await _signed_in(access)
    await _backdate(store, expires_at=now() - timedelta(seconds=1))
    await _signed_in(access, "ben")
    async with store.read() as connection:
        count = sa.select(sa.func.count()).select_from(sign_ins)
        assert (await connection.execute(count)).scalar_one() == 1
