"""Browser sign-ins: a random secret in a cookie, stored as a hash."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.access.account_status import require_active
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.limits.csrf import CsrfGuard
from polydev.controller.access.tokens import random_tokens
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import sign_ins, users
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import Scope, SignIn, User, UserId, now
from polydev.shared.errors import NoSuchToken, NotSignedIn

VIA = "sign-in"
_SEEN_INTERVAL = timedelta(minutes=1)
_MAX_USER_AGENT = 256


@dataclass(frozen=True, slots=True, repr=False)
class NewSignIn:
    """A new sign-in.

    `secret` is the cookie's value, so there is no repr.
    """

    user: User
    sign_in: SignIn
    secret: str


class SignIns:
    """Starts, authenticates and ends sign-ins."""

    def __init__(
        self, database: Database, settings: ControllerSettings, origins: CsrfGuard
    ) -> None:
        self._database = database
        self._origins = origins
        self._idle = timedelta(seconds=settings.sign_in_idle_s)
        self._limit = timedelta(seconds=settings.sign_in_limit_s)

    async def authenticate(self, request: RequestInfo) -> Caller:
        """Return the caller of a cookie. Raises NotSignedIn; NotAllowed for another site."""
        secret = request.cookie or ""
        sign_in, user = await self._find(secret)
        self._origins.check(request, secret)
        await self._record_use(sign_in)
        return Caller(user, frozenset(Scope), VIA, request.source, sign_in.sign_in_id)

    async def user(self, secret: str | None) -> UserId | None:
        """Return the user of a cookie; None if it is not valid."""
        try:
            return (await self._find(secret or ""))[1].user_id
        except NotSignedIn:
            return None

    async def start(
        self, connection: AsyncConnection, user: User, request: RequestInfo
    ) -> NewSignIn:
        """Sign an authenticated user in. The browser's previous sign-in ends."""
        await self._end_previous(connection, request.cookie)
        at = now()
        await sign_ins.prune_expired(connection, at, at - self._idle)
        sign_in = SignIn(
            sign_in_id=random_tokens.new_id(),
            user_id=user.user_id,
            source=request.source,
            user_agent=request.user_agent[:_MAX_USER_AGENT],
            created_at=at,
            seen_at=at,
            expires_at=at + self._limit,
        )
        secret = random_tokens.new_secret()
        await sign_ins.insert(connection, sign_in, random_tokens.digest(secret))
        return NewSignIn(user, sign_in, secret)

    async def list_for(self, caller: Caller) -> list[SignIn]:
        """List the caller's sign-ins, most recently used first."""
        at = now()
        async with self._database.read(caller.user_id) as connection:
            found = await sign_ins.list_for_user(connection, caller.user_id, at - self._idle)
        return [it for it in found if it.expires_at > at]

    async def end(self, caller: Caller, sign_in_id: str) -> None:
        """End one of the caller's sign-ins. Raises NoSuchToken."""
        entry = caller.audit_entry("sign-in.end", sign_in_id, caller.user_id)
        async with self._database.write(caller.user_id) as connection:
            await sign_ins.delete(connection, caller.user_id, sign_in_id)
            await audit.record(connection, entry)

    async def _find(self, secret: str) -> tuple[SignIn, User]:
        """Return the sign-in of a cookie and its user. Raises NotSignedIn."""
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise _ended()
        async with self._database.read() as connection:
            sign_in = await sign_ins.find_by_hash(connection, random_tokens.digest(secret))
            user = await users.find(connection, sign_in.user_id) if sign_in else None
        if sign_in is None or user is None or not self._is_valid(sign_in, now()):
            raise _ended()
        require_active(user)
        return sign_in, user

    def _is_valid(self, sign_in: SignIn, at: datetime) -> bool:
        return at < sign_in.expires_at and at < sign_in.seen_at + self._idle

    async def _record_use(self, sign_in: SignIn) -> None:
        at = now()
        if at - sign_in.seen_at >= min(_SEEN_INTERVAL, self._idle / 2):
            async with self._database.write() as connection:
                await sign_ins.set_last_seen(connection, sign_in.sign_in_id, at)

    async def _end_previous(self, connection: AsyncConnection, secret: str | None) -> None:
        previous = (
            await sign_ins.find_by_hash(connection, random_tokens.digest(secret))
            if secret
            else None
        )
        if previous is not None:
            with suppress(NoSuchToken):
                await sign_ins.delete(connection, previous.user_id, previous.sign_in_id)


def _ended() -> NotSignedIn:
    return NotSignedIn("This sign-in has ended", hint="Sign in again")
