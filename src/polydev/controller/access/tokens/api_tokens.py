"""API tokens, `pdt_<id>_<secret>`: shown once, stored as hashes, scoped, expiring."""

from __future__ import annotations

from datetime import datetime, timedelta

from polydev.controller.access.account_status import require_active
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.tokens import random_tokens
from polydev.controller.store.engine import locks
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import api_tokens, users
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import ApiToken, Scope, now
from polydev.shared.errors import BadRequest, NotAllowed, NotSignedIn, QuotaExceeded

PREFIX = "pdt_"
DEFAULT_DAYS = 90
MAX_DAYS = 3650
MAX_TOKENS = 100
MAX_NAME = 100
_USED_INTERVAL = timedelta(minutes=1)


class ApiTokens:
    """Creates, authenticates and revokes API tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def authenticate(self, text: str, request: RequestInfo) -> Caller:
        """Return the caller of a token.

        Raises NotSignedIn with one text for every cause.
        """
        token_id, _, secret = text.removeprefix(PREFIX).partition("_")
        if len(token_id) > random_tokens.MAX_CHARACTERS or not (
            token_id.isascii() and token_id.isalnum()
        ):
            raise _invalid_token()
        async with self._database.read() as connection:
            found = await api_tokens.find_with_hash(connection, token_id)
            user = await users.find(connection, found[0].user_id) if found else None
        if found is None or user is None or not random_tokens.matches(secret, found[1]):
            raise _invalid_token()
        token, at = found[0], now()
        if token.expires_at is not None and token.expires_at <= at:
            raise _invalid_token()
        require_active(user)
        if token.last_used_at is None or at - token.last_used_at >= _USED_INTERVAL:
            async with self._database.write() as connection:
                await api_tokens.set_last_used(connection, token_id, at)
        return Caller(user, token.scopes, f"token:{token_id}", request.source)

    async def create(
        self, caller: Caller, name: str, scopes: frozenset[Scope], lifetime: timedelta | None
    ) -> tuple[ApiToken, str]:
        """Create a token for the caller; return it with its text.

        Raises: BadRequest; NotAllowed for scopes that the caller lacks; QuotaExceeded.
        """
        if not name.strip() or not name.isprintable():
            raise BadRequest("A token needs a printable name")
        if not scopes:
            raise BadRequest(
                "A token needs a scope", hint=f"Scopes: {', '.join(it.value for it in Scope)}"
            )
        for scope in sorted(scopes):
            caller.require(scope)
        at = now()
        token = ApiToken(
            token_id=random_tokens.new_id(),
            user_id=caller.user_id,
            name=name.strip(),
            scopes=scopes,
            created_at=at,
            expires_at=None if lifetime is None else at + lifetime,
            last_used_at=None,
        )
        secret = random_tokens.new_secret()
        entry = caller.audit_entry(
            "token.create", token.token_id, caller.user_id, " ".join(sorted(scopes))
        )
        async with self._database.write(caller.user_id) as connection:
            await locks.acquire(connection, "tokens", caller.user_id)
            existing = await api_tokens.list_for_user(connection, caller.user_id)
            _require_not_outliving(caller, existing, token.expires_at)
            if len(existing) >= MAX_TOKENS:
                raise QuotaExceeded(
                    f"You already have {MAX_TOKENS} tokens", hint="Revoke one first"
                )
            await api_tokens.insert(connection, token, random_tokens.digest(secret))
            await audit.record(connection, entry)
        return token, f"{PREFIX}{token.token_id}_{secret}"

    async def list_for(self, caller: Caller) -> list[ApiToken]:
        """List the caller's tokens, including expired ones, newest first."""
        async with self._database.read(caller.user_id) as connection:
            return await api_tokens.list_for_user(connection, caller.user_id)

    async def revoke(self, caller: Caller, token_id: str) -> None:
        """Revoke one of the caller's tokens. Raises NoSuchToken."""
        entry = caller.audit_entry("token.revoke", token_id, caller.user_id)
        async with self._database.write(caller.user_id) as connection:
            await api_tokens.delete(connection, caller.user_id, token_id)
            await audit.record(connection, entry)


def _require_not_outliving(
    caller: Caller, existing: list[ApiToken], expires_at: datetime | None
) -> None:
    """Refuse to extend a (stolen) token by one that outlives it."""
    if caller.token_id is None:
        return
    own = next((it for it in existing if it.token_id == caller.token_id), None)
    if own is None:
        raise _invalid_token()  # revoked by a concurrent request
    if own.expires_at is None:
        return
    if expires_at is None or expires_at > own.expires_at:
        raise NotAllowed(
            "A token cannot create one that outlives it",
            hint=f"It expires at {own.expires_at:%Y-%m-%d %H:%M} UTC; sign in, or use fewer days",
        )


def _invalid_token() -> NotSignedIn:
    return NotSignedIn(
        "Invalid or expired token", hint="Check that it is complete, or create a new one"
    )
