"""Authenticate requests: turn a token or cookie into a caller.

Each kind of credential has its own module; this one only selects among them.
"""

from __future__ import annotations

from polydev.controller.access.administration import Administration
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.limits.csrf import CsrfGuard
from polydev.controller.access.limits.rate_limits import RateLimits
from polydev.controller.access.oidc.account_linking import OidcSignIn
from polydev.controller.access.oidc.jwks import MAX_TOKEN_CHARACTERS
from polydev.controller.access.oidc.oidc import OidcClient
from polydev.controller.access.oidc.supabase import SupabaseTokens
from polydev.controller.access.sign_in.accounts import AccountGuards, Accounts
from polydev.controller.access.sign_in.cookies import Cookies
from polydev.controller.access.sign_in.invitations import Invitations
from polydev.controller.access.sign_in.passwords import Passwords
from polydev.controller.access.sign_in.sign_ins import SignIns
from polydev.controller.access.tokens.admin_token import TOKEN_FILE, AdminToken, load_admin_token
from polydev.controller.access.tokens.api_tokens import PREFIX as TOKEN_PREFIX
from polydev.controller.access.tokens.api_tokens import ApiTokens
from polydev.controller.access.tokens.view_tickets import ViewTickets
from polydev.controller.settings import ControllerSettings, SignUp
from polydev.controller.store.engine.database import Database
from polydev.shared.errors import NotSignedIn

_JWT_DOTS = 2


class Access:
    """Entry to accounts and authentication, built from the settings."""

    def __init__(
        self,
        database: Database,
        settings: ControllerSettings,
        local: AdminToken,
        passwords: Passwords,
    ) -> None:
        origins = CsrfGuard(settings.own_url)
        self.sign_up: SignUp = settings.sign_up
        self.cookies = Cookies(
            secure=settings.own_url.startswith("https:"),
            sign_in_limit_s=int(settings.sign_in_limit_s),
        )
        self.trusted_proxies = settings.trusted_proxies
        self.limits = RateLimits(database, settings)
        self.tokens = ApiTokens(database)
        self.view_tickets = ViewTickets(database)
        self.invitations = Invitations(database)
        self.sign_ins = SignIns(database, settings, origins)
        self.administration = Administration(database, passwords)
        guards = AccountGuards(settings.sign_up, origins, self.limits, self.invitations)
        self.accounts = Accounts(database, guards, passwords, self.sign_ins)
        self.oidc_sign_in = None
        if settings.oidc_issuer is not None:
            oidc = OidcClient(settings.oidc_issuer, settings)
            self.oidc_sign_in = OidcSignIn(
                database, oidc, self.accounts, self.sign_ins, self.limits
            )
        self._local = local
        self._supabase = None
        if settings.supabase_url is not None:
            self._supabase = SupabaseTokens(database, settings.supabase_url, settings)

    @property
    def supabase_enabled(self) -> bool:
        """Access tokens of a Supabase project are accepted."""
        return self._supabase is not None

    async def authenticate(self, request: RequestInfo) -> Caller:
        """Return the caller. If there is an Authorization header, only that counts.

        Raises: NotSignedIn; NotAllowed if another site sent the request; IssuerUnreachable.
        """
        if request.authorization is not None:
            return await self._bearer(request.authorization, request)
        if request.cookie:
            return await self.sign_ins.authenticate(request)
        raise NotSignedIn(
            "Authentication required", hint="Sign in, or send `Authorization: Bearer <token>`"
        )

    async def _bearer(self, authorization: str, request: RequestInfo) -> Caller:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
            raise NotSignedIn(
                "Invalid Authorization header", hint="Send `Authorization: Bearer <token>`"
            )
        local = self._local.authenticate(token, request)
        if local is not None:
            return local
        if token.startswith(TOKEN_PREFIX):
            return await self.tokens.authenticate(token, request)
        if self._supabase is not None and token.count(".") == _JWT_DOTS:
            return await self._supabase.authenticate(token, request)
        raise NotSignedIn(
            "Unknown token",
            hint=f"The administrator's token is in the controller's folder, file {TOKEN_FILE}",
        )


async def open_access(database: Database, settings: ControllerSettings) -> Access:
    """Create `Access`, and the local administrator's account. Raises BadSettings."""
    local = await load_admin_token(database, settings.controller_dir, settings.admin_token)
    passwords = Passwords()
    await passwords.prepare()
    return Access(database, settings, local, passwords)
