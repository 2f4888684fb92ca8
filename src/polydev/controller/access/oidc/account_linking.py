"""Map an OpenID identity to a Polydev account.

An identity belongs to its account for good. Its e-mail address matters only at the first sign-in:

- no account has the address: create one, if the sign-up setting allows it;
- an account has it: link the identity only if the browser is also signed in to that account.

Polydev itself verifies no addresses. Someone may have signed up with an address that is not theirs,
and its owner must not end up in that account. Nor must someone who makes the provider claim an
address get into the account of its owner.
"""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from polydev.controller.access import email_addresses
from polydev.controller.access.account_status import require_active
from polydev.controller.access.caller import RequestInfo
from polydev.controller.access.limits.rate_limits import RateLimits
from polydev.controller.access.oidc.oidc import OidcClient, OidcIdentity, new_browser_secret
from polydev.controller.access.sign_in.accounts import Accounts, new_user, self_entry
from polydev.controller.access.sign_in.sign_ins import NewSignIn, SignIns
from polydev.controller.access.tokens import random_tokens
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import identities, users
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import User
from polydev.shared.errors import AlreadyExists, NotAllowed, NotSignedIn

_SEPARATOR = "."
"""Separates secret and invitation in the cookie; neither contains it."""


class OidcSignIn:
    """Signs browsers in through the OpenID provider."""

    def __init__(
        self,
        database: Database,
        oidc: OidcClient,
        accounts: Accounts,
        sign_ins: SignIns,
        limits: RateLimits,
    ) -> None:
        self._database = database
        self._oidc = oidc
        self._accounts = accounts
        self._sign_ins = sign_ins
        self._limits = limits

    @property
    def name(self) -> str:
        """Name of the provider on the pages."""
        return self._oidc.name

    async def start(self, invitation: str | None, request: RequestInfo) -> tuple[str, str]:
        """Return the provider's URL and the cookie that identifies the browser.

        Raises: TooManyRequests, IssuerUnreachable.
        """
        await self._limits.check_oidc(request.source)
        secret = new_browser_secret()
        url = await self._oidc.authorization_url(secret)
        return url, f"{secret}{_SEPARATOR}{invitation}" if invitation else secret

    async def finish(
        self, cookie: str | None, params: dict[str, str], request: RequestInfo
    ) -> NewSignIn:
        """Complete the sign-in with the parameters that the provider returned.

        Raises: NotSignedIn, NotAllowed, AlreadyExists, TooManyRequests, IssuerUnreachable.
        """
        await self._limits.check_oidc(request.source)
        secret, _, invitation = (cookie or "").partition(_SEPARATOR)
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise NotSignedIn("This sign-in was not started in this browser", hint="Start again")
        oidc_identity = await self._oidc.handle_callback(secret, params)
        async with self._database.read() as connection:
            known = await identities.find_user_id(connection, oidc_identity.identity)
            user = await users.find(connection, known) if known else None
        if user is None:
            return await self._first_seen(oidc_identity, invitation or None, request)
        require_active(user)
        async with self._database.write() as connection:
            entry = self_entry(
                user.user_id, "account.sign-in", request, reason=oidc_identity.identity.issuer
            )
            await audit.record(connection, entry)
            return await self._sign_ins.start(connection, user, request)

    async def _first_seen(
        self, oidc_identity: OidcIdentity, invitation: str | None, request: RequestInfo
    ) -> NewSignIn:
        if oidc_identity.verified_email is None:
            raise NotAllowed(
                "Your provider has not verified your e-mail address",
                hint="Verify it there, then sign in again",
            )
        address = email_addresses.normalize(oidc_identity.verified_email)
        async with self._database.read() as connection:
            existing = await users.find_by_email(connection, address)
        if existing is not None:
            return await self._link_existing(oidc_identity, existing, request)
        invited = await self._accounts.may_sign_up(address, invitation)
        user = new_user(address, invited)
        async with self._database.write() as connection:
            await self._accounts.add(connection, user, invited, request)
            await identities.insert(connection, oidc_identity.identity, user.user_id)
            return await self._sign_ins.start(connection, user, request)

    async def _link_existing(
        self, oidc_identity: OidcIdentity, existing: User, request: RequestInfo
    ) -> NewSignIn:
        if await self._sign_ins.user(request.cookie) != existing.user_id:
            raise AlreadyExists(
                "An account with this e-mail address already exists",
                hint="Sign in to it first, then with the provider in the same browser",
            )
        entry = self_entry(
            existing.user_id, "account.link", request, reason=oidc_identity.identity.issuer
        )
        try:
            async with self._database.write() as connection:
                await identities.insert(connection, oidc_identity.identity, existing.user_id)
                await audit.record(connection, entry)
                return await self._sign_ins.start(connection, existing, request)
        except IntegrityError:
            raise AlreadyExists(
                "This identity has just been linked", hint="Sign in again"
            ) from None
