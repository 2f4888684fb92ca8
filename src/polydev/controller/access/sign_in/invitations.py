"""Invitations, `pdi_<secret>`: each lets one user sign up."""

from __future__ import annotations

from datetime import timedelta

from polydev.controller.access import email_addresses
from polydev.controller.access.caller import Caller
from polydev.controller.access.tokens import random_tokens
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import invitations
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import Invitation, Role, now
from polydev.shared.errors import NotAllowed

PREFIX = "pdi_"
DEFAULT_DAYS = 7
MAX_DAYS = 365


class Invitations:
    """Creates, lists and revokes invitations. The API checks that the caller may."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, caller: Caller, email: str | None, role: Role, lifetime: timedelta
    ) -> tuple[Invitation, str]:
        """Create an invitation; return it with its code. Raises BadRequest."""
        at = now()
        invitation = Invitation(
            invitation_id=random_tokens.new_id(),
            email=None if email is None else email_addresses.normalize(email),
            role=role,
            created_by=caller.user_id,
            created_at=at,
            expires_at=at + lifetime,
        )
        secret = random_tokens.new_secret()
        entry = caller.audit_entry("invitation.create", invitation.invitation_id, None, role)
        async with self._database.write() as connection:
            await invitations.insert(connection, invitation, random_tokens.digest(secret))
            await audit.record(connection, entry)
        return invitation, f"{PREFIX}{secret}"

    async def list_all(self) -> list[Invitation]:
        """List all invitations, newest first."""
        async with self._database.read() as connection:
            return await invitations.list_all(connection)

    async def revoke(self, caller: Caller, invitation_id: str) -> None:
        """Delete an unused invitation. Raises NoSuchToken."""
        entry = caller.audit_entry("invitation.revoke", invitation_id, None)
        async with self._database.write() as connection:
            await invitations.delete_unused(connection, invitation_id)
            await audit.record(connection, entry)

    async def find_open(self, code: str, address: str) -> Invitation:
        """Return the invitation of a code, if this address may use it.

        Raises NotAllowed.
        """
        async with self._database.read() as connection:
            found = await invitations.find_by_hash(
                connection, random_tokens.digest(code.removeprefix(PREFIX))
            )
        if found is None or found.used_at is not None or found.expires_at <= now():
            raise invalid_invitation()
        if found.email is not None and found.email != address:
            raise NotAllowed(
                "This invitation is for another e-mail address",
                hint="Sign up with the invited address",
            )
        return found


def invalid_invitation() -> NotAllowed:
    """Return the error for an unknown, used or expired invitation."""
    return NotAllowed(
        "Invalid, used or expired invitation", hint="Ask an administrator for a new one"
    )
