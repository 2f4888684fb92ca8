"""Test API tokens: scopes, expiry, and that none creates a stronger one."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, TOKEN, from_browser, with_token

from polydev.controller.access import Access, Caller
from polydev.controller.access.tokens.api_tokens import MAX_TOKENS
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import api_tokens, audit_log, events
from polydev.shared.domain import Scope, now
from polydev.shared.errors import BadRequest, NoSuchToken, NotAllowed, NotSignedIn, QuotaExceeded

DAYS = timedelta(days=90)
SOME = frozenset({Scope.READ, Scope.ACCOUNT})


async def _user(access: Access, name: str = "ann") -> Caller:
    request = from_browser()
    new_sign_in = await access.accounts.sign_up(f"{name}@example.test", PASSWORD, None, request)
    return await access.authenticate(from_browser(new_sign_in.secret))


async def test_token_authenticates_its_user_within_scopes(access: Access) -> None:
    ann = await _user(access)
    token, text = await access.tokens.create(ann, "nightly build", SOME, DAYS)
    assert text.startswith(f"pdt_{token.token_id}_")
    caller = await access.authenticate(with_token(text))
    assert (caller.user_id, caller.scopes, caller.via) == (
        ann.user_id,
        SOME,
        f"token:{token.token_id}",
    )
    caller.require(Scope.READ)
    with pytest.raises(NotAllowed, match="`connect`"):
        caller.require(Scope.CONNECT)


async def test_incomplete_tokens_are_refused(access: Access) -> None:
    ann, ben = await _user(access), await _user(access, "ben")
    token, text = await access.tokens.create(ann, "a", SOME, DAYS)
    other, others = await access.tokens.create(ben, "b", SOME, DAYS)
    mixed = f"pdt_{token.token_id}_{others.split('_', 2)[2]}"
    broken = (text[:-1], text + "x", mixed, "pdt_", "pdt__", "pdt_\x00_x", "pdt_é_x", "pdt_none_x")
    for wrong in broken:
        with pytest.raises(NotSignedIn) as caught:
            await access.authenticate(with_token(wrong))
        assert caught.value.message == "Invalid or expired token"
    assert other.user_id == ben.user_id


async def test_expired_or_revoked_token_is_refused(access: Access) -> None:
    ann, ben = await _user(access), await _user(access, "ben")
    _, late = await access.tokens.create(ann, "late", SOME, timedelta(0))
    token, text = await access.tokens.create(ann, "revoked", SOME, None)
    for unknown in (token.token_id + "0", "none"):
        with pytest.raises(NoSuchToken):
            await access.tokens.revoke(ann, unknown)
    with pytest.raises(NoSuchToken):
        await access.tokens.revoke(ben, token.token_id)
    assert (await access.authenticate(with_token(text))).user_id == ann.user_id
    await access.tokens.revoke(ann, token.token_id)
    for ended in (late, text):
        with pytest.raises(NotSignedIn):
            await access.authenticate(with_token(ended))


async def test_token_cannot_create_a_stronger_or_longer_one(access: Access) -> None:
    ann = await _user(access)
    _, text = await access.tokens.create(ann, "some", SOME, DAYS)
    script = await access.authenticate(with_token(text))
    with pytest.raises(NotAllowed, match="lacks the scope"):
        await access.tokens.create(script, "more", SOME | {Scope.CHAT}, timedelta(days=1))
    for lifetime in (None, timedelta(days=91)):
        with pytest.raises(NotAllowed, match="outlives"):
            await access.tokens.create(script, "longer", SOME, lifetime)
    await access.tokens.create(script, "less", frozenset({Scope.READ}), timedelta(days=1))


async def test_token_revoked_concurrently_creates_none(access: Access) -> None:
    ann = await _user(access)
    token, text = await access.tokens.create(ann, "some", SOME, DAYS)
    script = await access.authenticate(with_token(text))
    await access.tokens.revoke(ann, token.token_id)
    with pytest.raises(NotSignedIn):
        await access.tokens.create(script, "heir", SOME, None)
    assert await access.tokens.list_for(ann) == []


async def test_only_administrators_create_admin_tokens(access: Access) -> None:
    with pytest.raises(NotAllowed, match="Administrators"):
        await access.tokens.create(await _user(access), "root", frozenset({Scope.ADMIN}), DAYS)
    root = await access.authenticate(with_token(TOKEN))
    _, text = await access.tokens.create(root, "root", frozenset({Scope.ADMIN}), DAYS)
    (await access.authenticate(with_token(text))).require(Scope.ADMIN)


async def test_token_needs_a_name_and_a_scope(access: Access) -> None:
    ann = await _user(access)
    for name in ("", "  ", "two\nlines", "nul\x00"):
        with pytest.raises(BadRequest):
            await access.tokens.create(ann, name, SOME, DAYS)
    with pytest.raises(BadRequest):
        await access.tokens.create(ann, "nothing", frozenset(), DAYS)


async def test_number_of_tokens_is_limited(access: Access, store: Database) -> None:
    ann = await _user(access)
    row = {"user_id": ann.user_id, "name": "x", "scopes": "read", "created_at": now()}
    async with store.write() as connection:
        for number in range(MAX_TOKENS):
            values = {**row, "token_id": f"t{number}", "secret_hash": f"h{number}"}
            await connection.execute(sa.insert(api_tokens).values(values))
    with pytest.raises(QuotaExceeded):
        await access.tokens.create(ann, "one too many", SOME, DAYS)


async def test_token_use_is_written_once_a_minute(access: Access, store: Database) -> None:
    ann = await _user(access)
    _, text = await access.tokens.create(ann, "used", SOME, DAYS)
    assert (await access.tokens.list_for(ann))[0].last_used_at is None
    await access.authenticate(with_token(text))
    first = (await access.tokens.list_for(ann))[0].last_used_at
    assert first is not None
    await access.authenticate(with_token(text))
    assert (await access.tokens.list_for(ann))[0].last_used_at == first
    async with store.write() as connection:
        await connection.execute(
            sa.update(api_tokens).values(last_used_at=first - timedelta(seconds=61))
        )
    await access.authenticate(with_token(text))
    last = (await access.tokens.list_for(ann))[0].last_used_at
    assert last is not None
    assert last >= first


async def test_token_changes_are_audited_and_emitted(access: Access, store: Database) -> None:
    ann = await _user(access)
    token, _ = await access.tokens.create(ann, "noted", SOME, DAYS)
    await access.tokens.revoke(ann, token.token_id)
    noted = sa.select(audit_log.c.action, audit_log.c.reason).where(
        audit_log.c.subject == token.token_id
    )
    event_list = sa.select(events.c.data).where(events.c.subject == token.token_id)
    async with store.read() as connection:
        entries = [tuple(it) for it in await connection.execute(noted)]
        statuses = {it["status"] for it in (await connection.execute(event_list)).scalars()}
    assert entries == [("token.create", "account read"), ("token.revoke", "")]
    assert statuses == {"created", "revoked"}
