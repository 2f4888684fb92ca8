"""Tickets for the live view: one look into one session's browser machine.

A page cannot add a header to the WebSocket that it opens, and a cookie alone says little about who
wanted it. So the page asks for a ticket first, as it asks for every change, and comes with it:
once, within half a minute, with the same sign-in or token, at any controller of the database.
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
"""How many of a person's may wait to be used."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a page comes with. It is told this once."""

    secret: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Ticket(expires_at={self.expires_at})"


class ViewTickets:
    """Gives tickets out, and takes them back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(self, caller: Caller, session_id: SessionId) -> Ticket:
        """A ticket for the caller's own session. Raises TooManyRequests."""
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
                    f"You have {MAX_UNUSED} tickets for live views that nobody came with yet",
                    hint="Wait a little",
                    retry_after_s=int(LIFETIME.total_seconds()),
                )
            await view_tickets.insert(connection, row, at)
        return Ticket(secret, row.expires_at)

    async def redeem(self, caller: Caller, session_id: SessionId, secret: str) -> None:
        """Take a ticket for good, whatever it is good for.

        Raises: NotAllowed, in the same words whatever is wrong with it.
        """
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise _invalid_ticket()
        async with self._database.write() as connection:
            row = await view_tickets.pop(connection, random_tokens.digest(secret))
        wanted = (caller.user_id, session_id, _holder(caller))
        if row is None or (row.user_id, row.session_id, row.holder) != wanted:
            raise _invalid_ticket()
        if row.expires_at <= now():
            raise _invalid_ticket()


def _holder(caller: Caller) -> str:
    """Which sign-in, token or other proof the caller came with."""
    return f"{caller.via} {caller.sign_in_id or ''}".strip()


def _invalid_ticket() -> NotAllowed:
    return NotAllowed(
        "This ticket for the live view does not count, or no longer",
        hint="Each counts once, for half a minute; ask for a new one",
    )
