"""Tickets that open one live view of a session's browser machine.

A page cannot add headers to a WebSocket, and a cookie alone does not prove that our page opens it.
So the page first requests a ticket, with CSRF protection. A ticket is valid once, for 30 seconds,
with the same sign-in or token, at any controller of the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from polydev.controller.access.caller import Caller
from polydev.controller.access.tokens import random_tokens
from polydev.controller.store.engine import locks
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import view_tickets
from polydev.shared.domain import SessionId, now
from polydev.shared.errors import NotAllowed, TooManyRequests

LIFETIME = timedelta(seconds=30)
MAX_UNUSED = 16
"""Unused tickets per user."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A new ticket with its secret."""

    secret: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Ticket(expires_at={self.expires_at})"


class ViewTickets:
    """Issues and redeems tickets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(self, caller: Caller, session_id: SessionId) -> Ticket:
        """Issue a ticket for the caller's own session. Raises TooManyRequests."""
        secret, at = random_tokens.new_secret(), now()
        row = view_tickets.TicketRow(
            secret_hash=random_tokens.digest(secret),
            user_id=caller.user_id,
            session_id=session_id,
            holder=_holder(caller),
            expires_at=at + LIFETIME,
        )
        async with self._database.write() as connection:
            await locks.acquire(connection, "view-tickets", caller.user_id)
            if await view_tickets.count_for_user(connection, caller.user_id, at) >= MAX_UNUSED:
                raise TooManyRequests(
                    f"You have {MAX_UNUSED} unused tickets for live views",
                    hint="Wait a moment",
                    retry_after_s=int(LIFETIME.total_seconds()),
                )
            await view_tickets.insert(connection, row, at)
        return Ticket(secret, row.expires_at)

    async def redeem(self, caller: Caller, session_id: SessionId, secret: str) -> None:
        """Use up a ticket, even if it turns out to be invalid.

        Raises: NotAllowed, with one text for every cause.
        """
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise _invalid_ticket()
        async with self._database.write() as connection:
            row = await view_tickets.pop(connection, random_tokens.digest(secret))
        expected = (caller.user_id, session_id, _holder(caller))
        if row is None or (row.user_id, row.session_id, row.holder) != expected:
            raise _invalid_ticket()
        if row.expires_at <= now():
            raise _invalid_ticket()


def _holder(caller: Caller) -> str:
    """Return the sign-in or token that the caller used."""
    return f"{caller.via} {caller.sign_in_id or ''}".strip()


def _invalid_ticket() -> NotAllowed:
    return NotAllowed(
        "Invalid, used or expired ticket",
        hint="A ticket is valid once, for 30 seconds; request a new one",
    )
