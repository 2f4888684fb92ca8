"""Sign-ins: browsers that hold a random secret in a cookie, of which the store has the hash."""

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
    """A sign-in that has just begun. `secret` is the cookie's, so this has no repr."""

    user: User
    sign_in: SignIn
    secret: str


class SignIns:
    """Begins, recognises and ends them."""

    def __init__(
        self, database: Database, settings: ControllerSettings, origins: CsrfGuard
    ) -> None:
        self._database = database
        self._origins = origins
        self._idle = timedelta(seconds=settings.sign_in_idle_s)
        self._limit = timedelta(seconds=settings.sign_in_limit_s)

    async def authenticate(self, asked: RequestInfo) -> Caller:
        """Who sent that cookie. Raises NotSignedIn; NotAllowed if another page made it do so."""
        secret = asked.cookie or ""
        sign_in, user = await self._found(secret)
        self._origins.check(asked, secret)
        await self._note_seen(sign_in)
        return Caller(user, frozenset(Scope), VIA, asked.source, sign_in.sign_in_id)

    async def user(self, secret: str | None) -> UserId | None:
        """Whose cookie that is; None if it is nobody's (any longer)."""
        try:
            return (await self._found(secret or ""))[1].user_id
        except NotSignedIn:
            return None

    async def start(self, connection: AsyncConnection, user: User, asked: RequestInfo) -> NewSignIn:
        """Sign somebody in who has proved who they are. The browser's old sign-in ends."""
        await self._end_replaced(connection, asked.cookie)
        at = now()
        await sign_ins.prune_expired(connection, at, at - self._idle)
        sign_in = SignIn(
            sign_in_id=random_tokens.new_id(),
            user_id=user.user_id,
            source=asked.source,
            user_agent=asked.user_agent[:_MAX_USER_AGENT],
            created_at=at,
            seen_at=at,
            expires_at=at + self._limit,
        )
        secret = random_tokens.new_secret()
        await sign_ins.insert(connection, sign_in, random_tokens.digest(secret))
        return NewSignIn(user, sign_in, secret)

    async def list_for(self, caller: Caller) -> list[SignIn]:
        """The caller's, the one seen last first."""
        at = now()
        async with self._database.read(caller.user_id) as connection:
            found = await sign_ins.list_for_user(connection, caller.user_id, at - self._idle)
        return [it for it in found if it.expires_at > at]

    async def end(self, caller: Caller, sign_in_id: str) -> None:
        """End one of the caller's. Raises NoSuchToken."""
        entry = caller.audit_entry("sign-in.end", sign_in_id, caller.user_id)
        async with self._database.write(caller.user_id) as connection:
            await sign_ins.delete(connection, caller.user_id, sign_in_id)
            await audit.record(connection, entry)

    async def _found(self, secret: str) -> tuple[SignIn, User]:
        """Raises NotSignedIn."""
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise _ended()
        async with self._database.read() as connection:
            sign_in = await sign_ins.find_by_hash(connection, random_tokens.digest(secret))
            user = await users.find(connection, sign_in.user_id) if sign_in else None
        if sign_in is None or user is None or not self._holds(sign_in, now()):
            raise _ended()
        require_active(user)
        return sign_in, user

    def _holds(self, sign_in: SignIn, at: datetime) -> bool:
        return at < sign_in.expires_at and at < sign_in.seen_at + self._idle

    async def _note_seen(self, sign_in: SignIn) -> None:
        at = now()
        if at - sign_in.seen_at >= min(_SEEN_INTERVAL, self._idle / 2):
            async with self._database.write() as connection:
                await sign_ins.set_last_seen(connection, sign_in.sign_in_id, at)

    async def _end_replaced(self, connection: AsyncConnection, secret: str | None) -> None:
        old = (
            await sign_ins.find_by_hash(connection, random_tokens.digest(secret))
            if secret
            else None
        )
        if old is not None:
            with suppress(NoSuchToken):
                await sign_ins.delete(connection, old.user_id, old.sign_in_id)


def _ended() -> NotSignedIn:
    return NotSignedIn("This sign-in is over", hint="Sign in again")
