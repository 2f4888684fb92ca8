"""Access tokens of a Supabase project: its people are people here, under the same ids.

Who may sign up there is the project's to say, so the sign-up setting does not apply. The project's
service key is not needed, and neither it nor the anonymous key signs anybody in.
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
    """Recognises a project's people, and makes rows for those who come for the first time."""

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

    async def authenticate(self, text: str, asked: RequestInfo) -> Caller:
        """Whose token that is. Raises NotSignedIn, NotAllowed, IssuerUnreachable."""
        claims = await self._claims(text)
        user_id = _user_id(claims)
        async with self._database.read() as connection:
            user = await users.find(connection, user_id)
        if user is None:
            user = await self._first_seen(user_id, claims, asked)
        require_active(user)
        return Caller(user, frozenset(Scope), VIA, asked.source)

    async def _claims(self, text: str) -> Claims:
        algorithm, key_id = read_header(text)
        if algorithm == SHARED_ALGORITHM and self._secret is not None:
            return verify(text, self._secret, algorithm, self._expected)
        if algorithm not in PUBLIC_ALGORITHMS:
            raise invalid_token()
        key = await self._keys.find(algorithm, key_id)
        if key is None:
            raise invalid_token()
        return verify(text, key, algorithm, self._expected)

    async def _first_seen(self, user_id: UserId, claims: Claims, asked: RequestInfo) -> User:
        if claims.get("is_anonymous") is True:
            raise NotAllowed(
                "Anonymous people of the Supabase project cannot come in",
                hint="Sign up there with an e-mail address",
            )
        user = User(user_id, _email(user_id, claims), now())
        async with self._database.write() as connection:
            try:
                await users.insert(connection, user)
            except AlreadyExists:
                there = await users.find(connection, user_id)
                if there is None:
                    raise _email_taken() from None
                return there  # another request was faster
            entry = self_entry(user_id, "account.sign-up", asked, via=VIA)
            await audit.record(connection, entry)
            await event_outbox.emit(connection, user_id, "account", user_id, status="new")
        return user


def _user_id(claims: Claims) -> UserId:
    """Supabase's ids are UUIDs; nothing else becomes a person's id, `admin` least of all."""
    try:
        return UserId(str(uuid.UUID(str(claims["sub"]))))
    except ValueError:
        raise NotSignedIn("This token names no person") from None


def _email(user_id: UserId, claims: Claims) -> str:
    """Their address; people who signed up with a telephone get a name that no mail reaches."""
    told = claims.get("email")
    try:
        return email_addresses.normalize(
            told if isinstance(told, str) and told else f"{user_id}@supabase.invalid"
        )
    except BadRequest:
        raise NotSignedIn("This token names an e-mail address that is none") from None


def _email_taken() -> NotAllowed:
    """Not joined: the Supabase project may have taken the address on trust, or we have."""
    return NotAllowed(
        "Another account here has this e-mail address already",
        hint="Sign in to that account, or ask an administrator to remove it",
    )
