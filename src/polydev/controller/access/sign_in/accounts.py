"""Sign up, sign in, sign out, and change the password.

Origin and rate limits are checked first. A setting decides who may sign up.
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
from polydev.controller.store.queries.accounts import passwords as password_rows
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import ApiToken, AuditEntry, Invitation, Role, User, UserId, now
from polydev.shared.errors import NotAllowed, NotSignedIn
from polydev.shared.hints import Hint

_RECENT = timedelta(minutes=10)

UNKNOWN_ACTOR = "nobody"
"""The audit log's actor of refused sign-ins."""


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """The result of a password change."""

    sign_ins_ended: int
    valid_tokens: list[ApiToken]


@dataclass(frozen=True, slots=True)
class AccountGuards:
    """The checks before a request reaches an account."""

    sign_up: SignUp
    origins: CsrfGuard
    limits: RateLimits
    invitations: Invitations


class Accounts:
    """Operations on accounts, called by the API."""

    def __init__(
        self, database: Database, guards: AccountGuards, passwords: Passwords, sign_ins: SignIns
    ) -> None:
        self._database = database
        self._guards = guards
        self._passwords = passwords
        self._sign_ins = sign_ins

    async def sign_up(
        self, email: str, password: str, invitation: str | None, request: RequestInfo
    ) -> NewSignIn:
        """Create an account and sign in.

        Raises: BadRequest, PasswordRefused, NotAllowed, AlreadyExists, TooManyRequests.
        """
        self._guards.origins.check_form(request)
        await self._guards.limits.check_sign_up(request.source)
        address = email_addresses.normalize(email)
        invited = await self.may_sign_up(address, invitation)
        stored_hash = await self._passwords.hash(passwords.validate_new(password, address))
        user = new_user(address, invited)
        async with self._database.write() as connection:
            await self.add(connection, user, invited, request)
            await password_rows.insert(connection, user.user_id, stored_hash)
            return await self._sign_ins.start(connection, user, request)

    async def may_sign_up(self, address: str, invitation: str | None) -> Invitation | None:
        """Check that this address may sign up; return its invitation. Raises NotAllowed."""
        if self._guards.sign_up is SignUp.CLOSED:
            raise NotAllowed("Sign-up is closed", hint="Ask an administrator")
        if invitation:
            return await self._guards.invitations.find_open(invitation, address)
        if self._guards.sign_up is SignUp.INVITATION:
            raise NotAllowed("Sign-up needs an invitation", hint="Ask an administrator for one")
        return None

    async def add(
        self,
        connection: AsyncConnection,
        user: User,
        invited: Invitation | None,
        request: RequestInfo,
    ) -> None:
        """Add a user and use up the invitation. Raises AlreadyExists, NotAllowed."""
        await users.insert(connection, user)
        if invited is not None and not await invitations.mark_used(
            connection, invited.invitation_id, user.user_id, now()
        ):
            raise invalid_invitation()
        reason = f"invitation {invited.invitation_id}" if invited else ""
        await audit.record(
            connection, self_entry(user.user_id, "account.sign-up", request, reason=reason)
        )
        await event_outbox.emit(connection, user.user_id, "account", user.user_id, status="new")

    async def sign_in(self, email: str, password: str, request: RequestInfo) -> NewSignIn:
        """Sign in with a password.

        Raises: NotSignedIn (with the same text for every cause), NotAllowed, TooManyRequests.
        """
        self._guards.origins.check_form(request)
        address = email_addresses.normalize(email)
        async with self._database.read() as connection:
            known = await sign_ins.list_sources(connection, address)
        await self._guards.limits.check_sign_in(address, request.source, known)
        async with self._database.read() as connection:
            user = await users.find_by_email(connection, address)
            user_id = user.user_id if user else UserId("")
            stored_hash = await password_rows.find_hash(connection, user_id)
        if (
            not await self._passwords.matches(password, stored_hash)
            or user is None
            or stored_hash is None
        ):
            await self._record_refusal(address, user, request)
            raise NotSignedIn("The e-mail address or the password is wrong")
        require_active(user)
        rehashed = await self._passwords.rehash(password, stored_hash)
        async with self._database.write() as connection:
            # Hashing takes a while: account and password may have changed in the meantime.
            latest = await users.find(connection, user.user_id)
            if latest is None or not await password_rows.lock_and_rehash(
                connection, user.user_id, stored_hash, rehashed
            ):
                raise NotSignedIn("The e-mail address or the password is wrong")
            require_active(latest)
            await audit.record(connection, self_entry(user.user_id, "account.sign-in", request))
            return await self._sign_ins.start(connection, latest, request)

    async def sign_out(self, caller: Caller) -> None:
        """End the caller's sign-in. Raises NotAllowed for a token."""
        sign_in_id = _require_sign_in(caller)
        entry = caller.audit_entry("account.sign-out", caller.user_id, caller.user_id)
        async with self._database.write(caller.user_id) as connection:
            await sign_ins.delete(connection, caller.user_id, sign_in_id)
            await audit.record(connection, entry)

    async def change_password(self, caller: Caller, current: str, new: str) -> PasswordChanged:
        """Change the password. All other sign-ins end; API tokens stay valid.

        Raises: PasswordRefused, TooManyRequests; NotAllowed if the current password is wrong.
        """
        sign_in_id, user_id = _require_sign_in(caller), caller.user_id
        await self._guards.limits.check_password(user_id)
        async with self._database.read() as connection:
            stored_hash = await password_rows.find_hash(connection, user_id)
        if stored_hash is None:
            raise NotAllowed(
                "This account has no password", hint="It signs in through your provider"
            )
        if not await self._passwords.matches(current, stored_hash):
            raise _wrong_password()
        new_hash = await self._passwords.hash(passwords.validate_new(new, caller.user.email))
        entry = caller.audit_entry("account.password-change", user_id, user_id)
        async with self._database.write() as connection:
            if not await password_rows.update(connection, user_id, stored_hash, new_hash):
                raise _wrong_password()
            ended = await sign_ins.delete_for_user(connection, user_id, but=sign_in_id)
            tokens = await api_tokens.list_for_user(connection, user_id)
            await audit.record(connection, entry)
            await event_outbox.emit(
                connection, user_id, "account", user_id, status="password-changed"
            )
        at = now()
        return PasswordChanged(
            ended, [it for it in tokens if it.expires_at is None or it.expires_at > at]
        )

    async def confirm(self, caller: Caller, password: str | None) -> None:
        """Confirm the caller by password, or by a recent sign-in.

        Raises: NotAllowed, TooManyRequests.
        """
        sign_in_id, user_id = _require_sign_in(caller), caller.user_id
        await self._guards.limits.check_password(user_id)
        async with self._database.read() as connection:
            stored_hash = await password_rows.find_hash(connection, user_id)
            at = now()
            recent = await sign_ins.list_for_user(connection, user_id, seen_since=at - _RECENT)
        if stored_hash is not None:
            if password is None or not await self._passwords.matches(password, stored_hash):
                raise NotAllowed("The password is wrong", hint="Enter your account's password")
        elif not any(it.sign_in_id == sign_in_id and it.created_at > at - _RECENT for it in recent):
            raise NotAllowed(
                "This sign-in is too old", hint="Sign in again, then retry within 10 minutes"
            )

    async def _record_refusal(self, address: str, user: User | None, request: RequestInfo) -> None:
        owner = None if user is None else user.user_id
        # The log outlives accounts: for known users, not even a hash of the address goes in.
        subject = (
            f"address:{email_addresses.hash_address(address)}" if user is None else user.user_id
        )
        entry = AuditEntry(
            UNKNOWN_ACTOR, "account.sign-in-refused", subject, owner, VIA, request.source
        )
        async with self._database.write() as connection:
            await audit.record(connection, entry)


def new_user(address: str, invited: Invitation | None) -> User:
    """Return a new user with a random id."""
    role = Role.USER if invited is None else invited.role
    return User(UserId(str(uuid.uuid4())), address, now(), role)


def self_entry(
    user_id: UserId, action: str, request: RequestInfo, *, via: str = VIA, reason: str = ""
) -> AuditEntry:
    """Return an audit entry of a user about their own account."""
    return AuditEntry(user_id, action, user_id, user_id, via, request.source, reason)


def _require_sign_in(caller: Caller) -> str:
    if caller.sign_in_id is None:
        raise NotAllowed("This needs a sign-in, not a token", hint=Hint.SIGN_IN_CALL.text())
    return caller.sign_in_id


def _wrong_password() -> NotAllowed:
    return NotAllowed("The current password is wrong")
