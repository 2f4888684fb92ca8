"""Test tickets for live views."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, MakeAccess, from_browser

from polydev.controller.access import Access, Caller
from polydev.controller.access.tokens.view_tickets import LIFETIME, MAX_UNUSED
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import view_tickets
from polydev.shared.domain import SessionId, now
from polydev.shared.errors import NotAllowed, TooManyRequests

HERE, THERE = SessionId("this-session"), SessionId("another-session")


async def _user(access: Access, name: str = "ann") -> Caller:
    request = from_browser()
    new_sign_in = await access.accounts.sign_up(f"{name}@example.test", PASSWORD, None, request)
    return await access.authenticate(from_browser(new_sign_in.secret))


async def _refused(access: Access, caller: Caller, session_id: SessionId, secret: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        await access.view_tickets.redeem(caller, session_id, secret)
    assert caught.value.message == "Invalid, used or expired ticket"
    assert secret not in caught.value.line() or not secret


async def test_ticket_is_valid_once_at_any_controller(
    access: Access, make_access: MakeAccess
) -> None:
    ann, other = await _user(access), await make_access(sign_up="open")
    ticket = await access.view_tickets.issue(ann, HERE)
    await other.view_tickets.redeem(ann, HERE, ticket.secret)
    for controller in (access, other):
        await _refused(controller, ann, HERE, ticket.secret)


async def test_ticket_is_bound_to_caller_and_session(access: Access) -> None:
    ann, ben = await _user(access), await _user(access, "ben")
    again = replace(ann, sign_in_id="another-sign-in")
    by_token = replace(ann, via="token:0123", sign_in_id=None)
    for caller, session_id in ((ben, HERE), (ann, THERE), (again, HERE), (by_token, HERE)):
        ticket = await access.view_tickets.issue(ann, HERE)
        await _refused(access, caller, session_id, ticket.secret)
        # The attempt has used it up.
        await _refused(access, ann, HERE, ticket.secret)
    ticket = await access.view_tickets.issue(ann, HERE)
    for wrong in ("", "~", ticket.secret[:-1], ticket.secret + "x", "x" * 5000, "\x00", "é"):
        await _refused(access, ann, HERE, wrong)
    await access.view_tickets.redeem(ann, HERE, ticket.secret)


async def test_ticket_expires_after_30_seconds(access: Access, store: Database) -> None:
    ann = await _user(access)
    ticket = await access.view_tickets.issue(ann, HERE)
    assert ticket.expires_at - now() <= LIFETIME
    await _backdate(store, now())
    await _refused(access, ann, HERE, ticket.secret)


async def test_unused_tickets_are_limited_and_pruned(access: Access, store: Database) -> None:
    ann, ben = await _user(access), await _user(access, "ben")
    for _ in range(MAX_UNUSED):
        await access.view_tickets.issue(ann, HERE)
    with pytest.raises(TooManyRequests):
        await access.view_tickets.issue(ann, HERE)
    await access.view_tickets.issue(ben, HERE)
    await _backdate(store, now())
    await access.view_tickets.issue(ann, HERE)
    async with store.read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(view_tickets)) == 1


async def test_ticket_is_stored_as_a_hash_and_hidden_in_repr(
    access: Access, store: Database
) -> None:
    ticket = await access.view_tickets.issue(await _user(access), HERE)
    assert ticket.secret not in repr(ticket)
    async with store.read() as connection:
        rows = (await connection.execute(sa.select(view_tickets))).all()
    assert len(rows) == 1
    assert ticket.secret not in repr(rows)


async def _backdate(store: Database, at: datetime) -> None:
    async with store.write() as connection:
        await connection.execute(sa.update(view_tickets).values(expires_at=at))
