"""The identity provider's endpoints, as the real CLIs call them.

Covers the authorization request, sign-in, consent and code, and the token, revocation and profile
endpoints. `grants.py` stores what was granted; `pages.py` renders the pages.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from polydev.testing.fake_providers.call_log import CallLog
from polydev.testing.fake_providers.identity import pages
from polydev.testing.fake_providers.identity.accounts import (
    ACCOUNTS,
    Account,
    Client,
    authenticate,
    find_client,
)
from polydev.testing.fake_providers.identity.grants import (
    AuthorizationRequest,
    GrantError,
    Grants,
    IssuedTokens,
)

SIGN_INS_AT_ONCE = 1000


@dataclass
class _SignIn:
    """A user on the way through the pages; the account is set after the password."""

    request: AuthorizationRequest
    account: Account | None = None


@dataclass
class IdentityProvider:
    """Handlers of one identity provider.

    `approve_automatically` makes its forms submit themselves, for a demo without a user.
    """

    grants: Grants
    call_log: CallLog
    approve_automatically: bool = False
    _sign_ins: dict[str, _SignIn] = field(default_factory=dict)

    def disable_automatic_approval(self) -> None:
        """Wait for users to submit the forms from now on."""
        self.approve_automatically = False

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        client = find_client(query.get("client_id", ""))
        redirect_uri = query.get("redirect_uri", "")
        if client is None or not client.may_redirect_to(redirect_uri):
            # Never redirect to an unregistered address (RFC 6749 4.1.2.1).
            return _html(pages.message("Bad request", "Unknown client or redirect address."), 400)
        wrong = _request_error(query, client)
        if wrong:
            return _redirect(redirect_uri, {"error": wrong, "state": query.get("state", "")})
        sign_in_id = secrets.token_urlsafe(24)
        if len(self._sign_ins) >= SIGN_INS_AT_ONCE:
            self._sign_ins.pop(next(iter(self._sign_ins)))
        self._sign_ins[sign_in_id] = _SignIn(
            AuthorizationRequest(
                client,
                redirect_uri,
                query.get("code_challenge", ""),
                query.get("state", ""),
                query.get("scope", ""),
            )
        )
        return _html(pages.sign_in(sign_in_id, client.name, self._prefilled()))

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        form = await _fields(request)
        sign_in = self._sign_ins.get(form.get("sign_in", ""))
        if sign_in is None:
            return _html(pages.message("Sign-in expired", "Start the login again."), 400)
        account = authenticate(form.get("email", ""), form.get("password", ""))
        name = sign_in.request.client.name
        if account is None:
            prefilled = pages.Prefilled(email=form.get("email", ""))
            error = "Wrong email or password."
            return _html(pages.sign_in(form["sign_in"], name, prefilled, error), 403)
        sign_in.account = account
        automatic = self.approve_automatically
        return _html(pages.consent(form["sign_in"], name, account.email, automatic=automatic))

    async def consent(self, request: web.Request) -> web.StreamResponse:
        form = await _fields(request)
        sign_in = self._sign_ins.get(form.get("sign_in", ""))
        if sign_in is None or sign_in.account is None:
            return _html(pages.message("Sign-in expired", "Start the login again."), 400)
        del self._sign_ins[form["sign_in"]]
        asked = sign_in.request
        if form.get("decision") != "allow":
            self.call_log.record("denied", client=asked.client.name)
            return _redirect(asked.redirect_uri, {"error": "access_denied", "state": asked.state})
        code = self.grants.issue_code(asked, sign_in.account)
        self.call_log.record("code-issued", client=asked.client.name)
        return _redirect(asked.redirect_uri, {"code": code, "state": asked.state})

    async def show_code(self, request: web.Request) -> web.StreamResponse:
        """Show the code to paste, after a redirect to the paste-a-code address."""
        code, state = request.query.get("code", ""), request.query.get("state", "")
        if not code:
            return _html(pages.message("Not authorized", "You did not authorize the login."))
        return _html(pages.code_to_paste(f"{code}#{state}"))

    async def show_success(self, request: web.Request) -> web.StreamResponse:
        return _html(pages.message("You are signed in", "You can close this page now."))

    async def show_failure(self, request: web.Request) -> web.StreamResponse:
        return _html(pages.message("You are not signed in", "Start the login again."))

    async def show_google_code(self, request: web.Request) -> web.StreamResponse:
        """Show Google's page, which has the code alone."""
        return _html(pages.code_to_paste(request.query.get("code", "")))

    async def token(self, request: web.Request) -> web.StreamResponse:
        form = await _fields(request)
        client = find_client(form.get("client_id", ""))
        grant_type = form.get("grant_type", "")
        try:
            if client is None:
                raise GrantError("invalid_client", "client_id is unknown")
            tokens = self._grant(client, grant_type, form)
        except GrantError as refused:
            self.call_log.record("grant-refused", grant_type=grant_type, reason=refused.reason)
            return _refusal(client, refused)
        self.call_log.record("tokens-issued", client=client.name, grant_type=grant_type)
        return web.json_response(_token_answer(client, tokens))

    def _grant(self, client: Client, grant_type: str, form: Mapping[str, str]) -> IssuedTokens:
        match grant_type:
            case "authorization_code":
                return self.grants.redeem(
                    client,
                    form.get("code", ""),
                    form.get("redirect_uri", ""),
                    form.get("code_verifier", ""),
                )
            case "refresh_token":
                return self.grants.rotate(client, form.get("refresh_token", ""))
            case _:
                # Codex also tries to exchange its login for an API key; a personal plan has none.
                raise GrantError("unsupported_grant_type", "this grant type is not offered")

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        form = await _fields(request)
        self.grants.revoke(form.get("token", ""))
        self.call_log.record("revoked")
        return web.json_response({})

    def _prefilled(self) -> pages.Prefilled:
        if not self.approve_automatically:
            return pages.Prefilled()
        return pages.Prefilled(ACCOUNTS[0].email, ACCOUNTS[0].password, automatic=True)


def _request_error(query: Mapping[str, str], client: Client) -> str:
    if query.get("response_type") != "code":
        return "unsupported_response_type"
    challenge = query.get("code_challenge", "")
    if not challenge and not client.needs_challenge:
        return ""
    if query.get("code_challenge_method") != "S256" or len(challenge) != 43:  # RFC 7636 4.2
        return "invalid_request"
    return ""


async def _fields(request: web.Request) -> dict[str, str]:
    """Read a form or a flat JSON object; only its text values."""
    if request.content_type == "application/json":
        try:
            body: object = await request.json()
        except ValueError:
            return {}
    else:
        body = dict(await request.post())
    pairs = body.items() if isinstance(body, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _redirect(uri: str, parameters: Mapping[str, str]) -> web.Response:
    separator = "&" if urlsplit(uri).query else "?"
    location = uri + separator + urlencode(parameters)
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def _html(page: pages.Page, status: int = 200) -> web.Response:
    headers = {
        "Content-Security-Policy": page.content_security_policy(),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(text=page.text, status=status, content_type="text/html", headers=headers)


def _refusal(client: Client | None, refused: GrantError) -> web.Response:
    """Return the provider's own error format, which its CLI parses."""
    if client is not None and client.provider == "openai" and "refresh_token" in refused.error:
        error = {"message": refused.reason, "type": "invalid_request_error", "code": refused.error}
        return web.json_response({"error": error}, status=401)
    code = "invalid_grant" if "refresh_token" in refused.error else refused.error
    answer = {"error": code, "error_description": refused.reason}
    return web.json_response(answer, status=403 if code == "unsupported_grant_type" else 400)


def _token_answer(client: Client, tokens: IssuedTokens) -> dict[str, object]:
    answer: dict[str, object] = {
        "token_type": "Bearer",
        "access_token": tokens.access_token,
        "expires_in": tokens.expires_in_s,
    }
    if tokens.refresh_token:
        answer["refresh_token"] = tokens.refresh_token
    if client.provider == "openai":
        return {**answer, "id_token": tokens.id_token}
    if client.provider == "google":
        return {**answer, "id_token": tokens.id_token, "scope": tokens.scope}
    account = tokens.account
    return {
        **answer,
        "scope": tokens.scope,
        "organization": {"uuid": account.identifier("organization"), "name": account.name},
        "account": {"uuid": account.identifier("user"), "email_address": account.email},
    }
