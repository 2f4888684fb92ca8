"""What administrators do to people: shut them out, let them in, give them a role or
another password."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.access.caller import LOCAL, Caller
from polydev.controller.access.sign_in.passwords import Passwords, generate
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR
from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import passwords, sign_ins, users
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import Role, User, UserId, now
from polydev.shared.errors import NoSuchUser, NotAllowed


class Administration:
    """Callers are checked to be administrators before."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords

    async def users(self, span: PageSpec | None = None) -> list[User]:
        """Everybody in the order in which they came, or a span of that."""
        async with self._database.read() as connection:
            return await users.list_all(connection, span)

    async def disable(self, caller: Caller, user_id: UserId) -> User:
        """Shut somebody out: their sign-ins end, and their tokens are refused from now on."""
        return await self._change(caller, user_id, disable=True)

    async def enable(self, caller: Caller, user_id: UserId) -> User:
        """Let somebody in again; their tokens hold again, too."""
        return await self._change(caller, user_id, disable=False)

    async def set_role(self, caller: Caller, user_id: UserId, role: Role) -> User:
        """Give somebody a role. Raises NoSuchUser; NotAllowed for the local administrator."""
        async with self._database.write() as connection:
            user = await _get_other_user(connection, user_id)
            await users.set_role(connection, user_id, role)
            await audit.record(
                connection, caller.audit_entry("person.role", user_id, user_id, role)
            )
        return replace(user, role=role)

    async def reset_password(self, caller: Caller, user_id: UserId) -> tuple[User, str]:
        """A made-up password in place of a lost one: told this once. Their sign-ins end.

        Whoever has it comes in as that person, so it takes the machine's own administrator, whose
        token lies beside the database. Raises NoSuchUser, NotAllowed, TooManyRequests.
        """
        if caller.via != LOCAL:
            raise NotAllowed(
                "Only the machine's own administrator gives people another password",
                hint="`polydev user password`, on the controller's machine",
            )
        password = generate()
        kept = await self._passwords.hash(password)
        async with self._database.write() as connection:
            user = await _get_user(connection, user_id)
            await passwords.upsert(connection, user_id, kept)
            await sign_ins.delete_for_user(connection, user_id)
            await audit.record(connection, caller.audit_entry("person.password", user_id, user_id))
            await event_outbox.emit(
                connection, user_id, "account", user_id, status="password-changed"
            )
        return user, password

    async def _change(self, caller: Caller, user_id: UserId, *, disable: bool) -> User:
        """Raises NoSuchUser; NotAllowed for the local administrator."""
        async with self._database.write() as connection:
            user = await _get_other_user(connection, user_id)
            if (user.disabled_at is not None) == disable:
                return user
            disabled_at = now() if disable else None
            await users.set_disabled(connection, user_id, disabled_at)
            if disable:
                await sign_ins.delete_for_user(connection, user_id)
            verb = "disable" if disable else "enable"
            await audit.record(connection, caller.audit_entry(f"person.{verb}", user_id, user_id))
        return replace(user, disabled_at=disabled_at)


async def _get_other_user(connection: AsyncConnection, user_id: UserId) -> User:
    """The person, who is not the local administrator: there is always one. Raises NoSuchUser."""
    if user_id == ADMINISTRATOR:
        raise NotAllowed(
            "The local administrator stays what they are",
            hint="Their token is changed by removing the file admin-token, and a restart",
        )
    return await _get_user(connection, user_id)


async def _get_user(connection: AsyncConnection, user_id: UserId) -> User:
    """Raises NoSuchUser."""
    user = await users.find(connection, user_id)
    if user is None:
        raise NoSuchUser(f"No person has the id {user_id}")
    return user
