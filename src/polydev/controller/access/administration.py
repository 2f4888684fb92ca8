"""Manage users as an administrator."""

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
from polydev.shared.hints import Hint


class Administration:
    """Actions of administrators. The API checks that the caller is one."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords

    async def users(self, span: PageSpec | None = None) -> list[User]:
        """List users, oldest account first: all, or a page."""
        async with self._database.read() as connection:
            return await users.list_all(connection, span)

    async def disable(self, caller: Caller, user_id: UserId) -> User:
        """Disable a user: sign-ins end, and API tokens are refused."""
        return await self._change(caller, user_id, disable=True)

    async def enable(self, caller: Caller, user_id: UserId) -> User:
        """Enable a user again, with their API tokens."""
        return await self._change(caller, user_id, disable=False)

    async def set_role(self, caller: Caller, user_id: UserId, role: Role) -> User:
        """Set a user's role. Raises NoSuchUser; NotAllowed for the local administrator."""
        async with self._database.write() as connection:
            user = await _get_other_user(connection, user_id)
            await users.set_role(connection, user_id, role)
            await audit.record(
                connection, caller.audit_entry("person.role", user_id, user_id, role)
            )
        return replace(user, role=role)

    async def reset_password(self, caller: Caller, user_id: UserId) -> tuple[User, str]:
        """Replace a user's password with a random one and return it.

        Their sign-ins end.

        The password lets its holder act as that user, so only the local administrator may do
        this, who can read the database anyway. Raises NoSuchUser, NotAllowed, TooManyRequests.
        """
        if caller.via != LOCAL:
            raise NotAllowed(
                "Only the local administrator can reset passwords",
                hint=Hint.RESET_PASSWORD.text(),
            )
        password = generate()
        password_hash = await self._passwords.hash(password)
        async with self._database.write() as connection:
            user = await _get_user(connection, user_id)
            await passwords.upsert(connection, user_id, password_hash)
            await sign_ins.delete_for_user(connection, user_id)
            await audit.record(connection, caller.audit_entry("person.password", user_id, user_id))
            await event_outbox.emit(
                connection, user_id, "account", user_id, status="password-changed"
            )
        return user, password

    async def _change(self, caller: Caller, user_id: UserId, *, disable: bool) -> User:
        """Disable or enable a user. Raises NoSuchUser; NotAllowed for the local administrator."""
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
    """Return a user who is not the local administrator. Raises NoSuchUser, NotAllowed."""
    if user_id == ADMINISTRATOR:
        raise NotAllowed(
            "The local administrator cannot be changed",
            hint="To change the token, delete the file admin-token and restart the controller",
        )
    return await _get_user(connection, user_id)


async def _get_user(connection: AsyncConnection, user_id: UserId) -> User:
    """Return a user. Raises NoSuchUser."""
    user = await users.find(connection, user_id)
    if user is None:
        raise NoSuchUser(f"There is no user {user_id}")
    return user
