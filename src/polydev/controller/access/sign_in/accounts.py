"""Accounts: signing up, signing in, changing the password.

`Access` holds it, the API asks it. Who may make an account is a setting; whether a request comes
from our own page, and how often one may ask, is looked at before anything is done.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.access import email_addresses
from polydev.controller.access.account_status import require_active
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.limits.csrf import CsrfGuard
from polydev.controller.access.limits.rate_limits import RateLimits
from polydev.controller.access.sign_in import passwords
from polydev.controller.access.sign_in.invitations import Invitations, invalid_invitation
from polydev.controller.access.sign_in.passwords import Passwords
from polydev.controller.access.sign_in.sign_ins import VIA, NewSignIn, SignIns
from polydev.controller.settings import SignUp
from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import api_tokens, invitations, sign_ins, users
from polydev.controller.store.queries.accounts import passwords as kept_passwords
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import ApiToken, AuditEntry, Invitation, Role, User, UserId, now
from polydev.shared.errors import NotAllowed, NotSignedIn

_RECENT = timedelta(minutes=10)

UNKNOWN_ACTOR = "nobody"
"""Who acts, in the audit log, when somebody could not prove who they are."""


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """What a change of password did, and what it left."""

    sign_ins_ended: int
    tokens_kept: list[ApiToken]


@dataclass(frozen=True, slots=True)
class AccountGuards:
    """What stands between a request and an account."""

    sign_up: SignUp
    origins: CsrfGuard
    limits: RateLimits
    invitations: Invitations


class Accounts:
    """Asked by the API, once each."""

    def __init__(
        self, database: Database, guards: AccountGuards, passwords: Passwords, sign_ins: SignIns
    ) -> None:
        self._database = database
        self._guards = guards
        self._passwords = passwords
        self._sign_ins = sign_ins

    async def sign_up(
        self, email: str, password: str, invitation: str | None, asked: RequestInfo
    ) -> NewSignIn:
        """A new account, signed in.

        Raises: BadRequest, PasswordRefused, NotAllowed, AlreadyExists, TooManyRequests.
        """
        self._guards.origins.check_form(asked)
        await self._guards.limits.check_sign_up(asked.source)
        address = email_addresses.normalize(email)
        invited = await self.may_sign_up(address, invitation)
        kept = await self._passwords.hash(passwords.validate_new(password, address))
        user = new_user(address, invited)
        async with self._database.write() as connection:
            await self.add(connection, user, invited, asked)
            await kept_passwords.insert(connection, user.user_id, kept)
            return await self._sign_ins.start(connection, user, asked)

    async def may_sign_up(self, address: str, invitation: str | None) -> Invitation | None:
        """Whether somebody with that address may make an account. Raises NotAllowed."""
        if self._guards.sign_up is SignUp.CLOSED:
            raise NotAllowed("Nobody can sign up here", hint="Ask an administrator")
        if invitation:
            return await self._guards.invitations.find_open(invitation, address)
        if self._guards.sign_up is SignUp.INVITATION:
            raise NotAllowed(
                "Signing up here needs an invitation", hint="Ask an administrator for one"
            )
        return None

    async def add(
        self,
        connection: AsyncConnection,
        user: User,
        invited: Invitation | None,
        asked: RequestInfo,
    ) -> None:
        """Add a person, and use their invitation up. Raises AlreadyExists, NotAllowed."""
        await users.insert(connection, user)
        if invited is not None and not await invitations.mark_used(
            connection, invited.invitation_id, user.user_id, now()
        ):
            raise invalid_invitation()
        reason = f"invitation {invited.invitation_id}" if invited else ""
        await audit.record(
            connection, self_entry(user.user_id, "account.sign-up", asked, reason=reason)
        )
        await event_outbox.emit(connection, user.user_id, "account", user.user_id, status="new")

    async def sign_in(self, email: str, password: str, asked: RequestInfo) -> NewSignIn:
        """Raises: NotSignedIn (in the same words for everybody), NotAllowed, TooManyRequests."""
        self._guards.origins.check_form(asked)
        address = email_addresses.normalize(email)
        async with self._database.read() as connection:
            known = await sign_ins.list_sources(connection, address)
        await self._guards.limits.check_sign_in(address, asked.source, known)
        async with self._database.read() as connection:
            user = await users.find_by_email(connection, address)
            user_id = user.user_id if user else UserId("")
            kept = await kept_passwords.find_hash(connection, user_id)
        if not await self._passwords.matches(password, kept) or user is None or kept is None:
            await self._note_refusal(address, user, asked)
            raise NotSignedIn("The e-mail address or the password is wrong")
        require_active(user)
        renewed = await self._passwords.rehash(password, kept)
        async with self._database.write() as connection:
            # Neither may have changed while the password was looked at, which takes a while.
            latest = await users.find(connection, user.user_id)
            if latest is None or not await kept_passwords.lock_and_rehash(
                connection, user.user_id, kept, renewed
            ):
                raise NotSignedIn("The e-mail address or the password is wrong")
            require_active(latest)
            await audit.record(connection, self_entry(user.user_id, "account.sign-in", asked))
            return await self._sign_ins.start(connection, latest, asked)

    async def sign_out(self, caller: Caller) -> None:
        """End the sign-in that asks. Raises NotAllowed for a token."""
        sign_in_id = _require_sign_in(caller)
        entry = caller.audit_entry("account.sign-out", caller.user_id, caller.user_id)
        async with self._database.write(caller.user_id) as connection:
            await sign_ins.delete(connection, caller.user_id, sign_in_id)
            await audit.record(connection, entry)

    async def change_password(self, caller: Caller, current: str, new: str) -> PasswordChanged:
        """Another password; every other sign-in ends, API tokens stay.

        Raises: PasswordRefused, TooManyRequests; NotAllowed for who does not tell the current one.
        """
        sign_in_id, user_id = _require_sign_in(caller), caller.user_id
        await self._guards.limits.check_password(user_id)
        async with self._database.read() as connection:
            kept = await kept_passwords.find_hash(connection, user_id)
        if kept is None:
            raise NotAllowed(
                "This account has no password", hint="It signs in where it was made from"
            )
        if not await self._passwords.matches(current, kept):
            raise _wrong_password()
        fresh = await self._passwords.hash(passwords.validate_new(new, caller.user.email))
        entry = caller.audit_entry("account.password-change", user_id, user_id)
        async with self._database.write() as connection:
            if not await kept_passwords.update(connection, user_id, kept, fresh):
                raise _wrong_password()
            ended = await sign_ins.delete_for_user(connection, user_id, but=sign_in_id)
            present = await api_tokens.list_for_user(connection, user_id)
            await audit.record(connection, entry)
            await event_outbox.emit(
                connection, user_id, "account", user_id, status="password-changed"
            )
        at = now()
        return PasswordChanged(
            ended, [it for it in present if it.expires_at is None or it.expires_at > at]
        )

    async def confirm(self, caller: Caller, password: str | None) -> None:
        """That they mean it, and are who they are: by their password; by a sign-in that has just
        begun, if their account has none.

        Raises: NotAllowed, TooManyRequests.
        """
        sign_in_id, user_id = _require_sign_in(caller), caller.user_id
        await self._guards.limits.check_password(user_id)
        async with self._database.read() as connection:
            kept = await kept_passwords.find_hash(connection, user_id)
            at = now()
            recent = await sign_ins.list_for_user(connection, user_id, seen_since=at - _RECENT)
        if kept is not None:
            if password is None or not await self._passwords.matches(password, kept):
                raise NotAllowed("The password is wrong", hint="Tell the account's password")
        elif not any(it.sign_in_id == sign_in_id and it.created_at > at - _RECENT for it in recent):
            raise NotAllowed(
                "This sign-in is too old for that", hint="Sign in again, and ask within 10 minutes"
            )

    async def _note_refusal(self, address: str, user: User | None, asked: RequestInfo) -> None:
        owner = None if user is None else user.user_id
        # The log outlives people: of those it knows, not even a hash of the address goes in.
        subject = (
            f"address:{email_addresses.hash_address(address)}" if user is None else user.user_id
        )
        entry = AuditEntry(
            UNKNOWN_ACTOR, "account.sign-in-refused", subject, owner, VIA, asked.source
        )
        async with self._database.write() as connection:
            await audit.record(connection, entry)


def new_user(address: str, invited: Invitation | None) -> User:
    """Somebody with an id of their own."""
    role = Role.USER if invited is None else invited.role
    return User(UserId(str(uuid.uuid4())), address, now(), role)


def self_entry(
    user_id: UserId, action: str, asked: RequestInfo, *, via: str = VIA, reason: str = ""
) -> AuditEntry:
    """An entry of somebody who has just proved who they are, about themselves."""
    return AuditEntry(user_id, action, user_id, user_id, via, asked.source, reason)


def _require_sign_in(caller: Caller) -> str:
    if caller.sign_in_id is None:
        raise NotAllowed(
            "This needs a sign-in in a browser, not a token", hint="POST /api/account/sign-in"
        )
    return caller.sign_in_id


def _wrong_password() -> NotAllowed:
    return NotAllowed("The current password is wrong")
