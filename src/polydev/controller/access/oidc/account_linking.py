"""Who somebody is here, whom the OpenID provider vouches for.

An identity stays a person's for good; their address is looked at only when it is first seen. Then:

- nobody has that address: a new account, if the sign-up setting allows it;
- somebody has it: it becomes theirs only if the browser is signed in to that very account, too.

Polydev verifies no address itself. So an account may have been made by somebody who does not own
its address, and the owner, coming from the provider, must not be led into it; nor must whoever
gets the provider to say an address be let into the account of its owner.
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
"""Between the secret and the invitation in the cookie; neither contains it."""


class OidcSignIn:
    """Sends browsers to the provider, and receives them."""

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
        """What the page calls the provider."""
        return self._oidc.name

    async def start(self, invitation: str | None, asked: RequestInfo) -> tuple[str, str]:
        """Where to send the browser, and the cookie that it must have when it comes back.

        Raises: TooManyRequests, IssuerUnreachable.
        """
        await self._limits.check_oidc(asked.source)
        secret = new_browser_secret()
        url = await self._oidc.authorization_url(secret)
        return url, f"{secret}{_SEPARATOR}{invitation}" if invitation else secret

    async def finish(
        self, cookie: str | None, told: dict[str, str], asked: RequestInfo
    ) -> NewSignIn:
        """Signed in.

        Raises: NotSignedIn, NotAllowed, AlreadyExists, TooManyRequests, IssuerUnreachable.
        """
        await self._limits.check_oidc(asked.source)
        secret, _, invitation = (cookie or "").partition(_SEPARATOR)
        if not 0 < len(secret) <= random_tokens.MAX_CHARACTERS:
            raise NotSignedIn("This sign-in did not begin in this browser", hint="Begin again")
        vouched = await self._oidc.handle_callback(secret, told)
        async with self._database.read() as connection:
            known = await identities.find_user_id(connection, vouched.identity)
            user = await users.find(connection, known) if known else None
        if user is None:
            return await self._first_seen(vouched, invitation or None, asked)
        require_active(user)
        async with self._database.write() as connection:
            entry = self_entry(
                user.user_id, "account.sign-in", asked, reason=vouched.identity.issuer
            )
            await audit.record(connection, entry)
            return await self._sign_ins.start(connection, user, asked)

    async def _first_seen(
        self, vouched: OidcIdentity, invitation: str | None, asked: RequestInfo
    ) -> NewSignIn:
        if vouched.verified_email is None:
            raise NotAllowed(
                "The provider has not verified your e-mail address",
                hint="Have it verified there, and sign in again",
            )
        address = email_addresses.normalize(vouched.verified_email)
        async with self._database.read() as connection:
            there = await users.find_by_email(connection, address)
        if there is not None:
            return await self._linked(vouched, there, asked)
        invited = await self._accounts.may_sign_up(address, invitation)
        user = new_user(address, invited)
        async with self._database.write() as connection:
            await self._accounts.add(connection, user, invited, asked)
            await identities.insert(connection, vouched.identity, user.user_id)
            return await self._sign_ins.start(connection, user, asked)

    async def _linked(self, vouched: OidcIdentity, there: User, asked: RequestInfo) -> NewSignIn:
        if await self._sign_ins.user(asked.cookie) != there.user_id:
            raise AlreadyExists(
                "There is an account with this e-mail address already",
                hint="Sign in to it as before, and then with the provider in the same browser",
            )
        entry = self_entry(there.user_id, "account.link", asked, reason=vouched.identity.issuer)
        try:
            async with self._database.write() as connection:
                await identities.insert(connection, vouched.identity, there.user_id)
                await audit.record(connection, entry)
                return await self._sign_ins.start(connection, there, asked)
        except IntegrityError:
            raise AlreadyExists("It has just been linked", hint="Sign in again") from None
