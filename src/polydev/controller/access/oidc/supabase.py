"""Authenticate access tokens of a Supabase project; its users keep their ids.

The project decides who may sign up, so the sign-up setting does not apply. The project's service
key is not needed, and neither it nor the anonymous key is accepted as a token.
Source: Supabase's documentation, "JWT Claims Reference" and "JWT Signing Keys".
"""

from __future__ import annotations

import uuid

from joserfc.jwk import OctKey
from joserfc.jwt import JWTClaimsRegistry

from polydev.controller.access import email_addresses
from polydev.controller.access.account_status import require_active
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.oidc.jwks import (
    LEEWAY_S,
    PUBLIC_ALGORITHMS,
    SHARED_ALGORITHM,
    Claims,
    Jwks,
    invalid_token,
    read_header,
    verify,
)
from polydev.controller.access.sign_in.accounts import self_entry
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import Scope, User, UserId, now
from polydev.shared.errors import AlreadyExists, BadRequest, NotAllowed, NotSignedIn

VIA = "supabase"
_AUDIENCE = "authenticated"


class SupabaseTokens:
    """Verifies tokens, and creates an account at a user's first request."""

    def __init__(self, database: Database, url: str, settings: ControllerSettings) -> None:
        self._database = database
        issuer = f"{url.rstrip('/')}/auth/v1"
        secret = settings.supabase_jwt_secret
        self._secret = None if secret is None else OctKey.import_key(secret.get_secret_value())

        async def keys_url() -> str:
            return f"{issuer}/.well-known/jwks.json"

        self._keys = Jwks(keys_url, "The Supabase project")
        self._expected = JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": _AUDIENCE},
            role={"essential": True, "value": _AUDIENCE},
            exp={"essential": True},
            sub={"essential": True},
        )

    async def authenticate(self, token: str, request: RequestInfo) -> Caller:
        """Return the caller of a token. Raises NotSignedIn, NotAllowed, IssuerUnreachable."""
        claims = await self._claims(token)
        user_id = _user_id(claims)
        async with self._database.read() as connection:
            user = await users.find(connection, user_id)
        if user is None:
            user = await self._first_seen(user_id, claims, request)
        require_active(user)
        return Caller(user, frozenset(Scope), VIA, request.source)

    async def _claims(self, token: str) -> Claims:
        algorithm, key_id = read_header(token)
        if algorithm == SHARED_ALGORITHM and self._secret is not None:
            return verify(token, self._secret, algorithm, self._expected)
        if algorithm not in PUBLIC_ALGORITHMS:
            raise invalid_token()
        key = await self._keys.find(algorithm, key_id)
        if key is None:
            raise invalid_token()
        return verify(token, key, algorithm, self._expected)

    async def _first_seen(self, user_id: UserId, claims: Claims, request: RequestInfo) -> User:
        if claims.get("is_anonymous") is True:
            raise NotAllowed(
                "Anonymous users of the Supabase project are not accepted",
                hint="Sign up there with an e-mail address first",
            )
        user = User(user_id, _email(user_id, claims), now())
        async with self._database.write() as connection:
            try:
                await users.insert(connection, user)
            except AlreadyExists:
                existing = await users.find(connection, user_id)
                if existing is None:
                    raise _email_taken() from None
                return existing  # a concurrent request added it
            entry = self_entry(user_id, "account.sign-up", request, via=VIA)
            await audit.record(connection, entry)
            await event_outbox.emit(connection, user_id, "account", user_id, status="new")
        return user


def _user_id(claims: Claims) -> UserId:
    """Return the user id, a UUID, so that `admin` is never accepted."""
    try:
        return UserId(str(uuid.UUID(str(claims["sub"]))))
    except ValueError:
        raise NotSignedIn("This token has no valid user id") from None


def _email(user_id: UserId, claims: Claims) -> str:
    """Return the e-mail address, or a placeholder for phone-only users."""
    email = claims.get("email")
    try:
        return email_addresses.normalize(
            email if isinstance(email, str) and email else f"{user_id}@supabase.invalid"
        )
    except BadRequest:
        raise NotSignedIn("This token has an invalid e-mail address") from None


def _email_taken() -> NotAllowed:
    """Return the error for a known address, which may be unverified."""
    return NotAllowed(
        "Another account already has this e-mail address",
        hint="Sign in to that account, or ask an administrator to delete it",
    )
