"""OpenID Connect client: authorization code flow with PKCE, state and nonce.

State, nonce and PKCE verifier are derived from a random secret in the browser's cookie. So only the
browser that started can finish, any controller can handle the callback, and nothing is stored.
Accounts are the business of `account_linking.py`.
Source: OpenID Connect Core 1.0, sections 3.1.2 and 3.1.3.7; RFC 7636; RFC 9207.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc.jwt import JWTClaimsRegistry

from polydev.controller.access.oidc.idp_http import fetch_json, post_form
from polydev.controller.access.oidc.jwks import (
    LEEWAY_S,
    PUBLIC_ALGORITHMS,
    Claims,
    Jwks,
    read_header,
    verify,
)
from polydev.controller.access.tokens import random_tokens
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.queries.accounts.identities import Identity
from polydev.shared.errors import IssuerUnreachable, NotSignedIn

CALLBACK_PATH = "/api/account/oidc/callback"
CALLBACK_TIMEOUT_S = 600
"""Time that a user may take at the provider."""

_SCOPE = "openid email"
_FORM = {"content-type": "application/x-www-form-urlencoded;charset=UTF-8"}
_DISCOVERY = "/.well-known/openid-configuration"
_MAX_AGE_S = 3600
_PEER = "The OpenID provider"


@dataclass(frozen=True, slots=True)
class OidcIdentity:
    """The identity that the provider asserts."""

    identity: Identity
    verified_email: str | None
    """The e-mail address, if the provider has verified it."""


@dataclass(frozen=True, slots=True)
class _Discovery:
    """The discovery document."""

    authorize: str
    token: str
    keys: str
    userinfo: str | None
    token_auth: tuple[str, ...]


class OidcClient:
    """One OpenID provider, and this controller as its client."""

    def __init__(self, issuer: str, settings: ControllerSettings) -> None:
        secret = settings.oidc_client_secret
        self.name = settings.oidc_name
        self._issuer = issuer
        self._client_id = settings.oidc_client_id or ""
        self._secret = None if secret is None else secret.get_secret_value()
        self._redirect_uri = f"{settings.own_url}{CALLBACK_PATH}"
        self._provider: _Discovery | None = None
        self._read_at = -float("inf")
        self._keys = Jwks(self._keys_url, _PEER)

    async def authorization_url(self, secret: str) -> str:
        """Return the URL for a browser with this secret. Raises IssuerUnreachable."""
        provider = await self._discovered()
        url: str = prepare_grant_uri(
            provider.authorize,
            self._client_id,
            "code",
            redirect_uri=self._redirect_uri,
            scope=_SCOPE,
            state=_derive(secret, "state"),
            nonce=_derive(secret, "nonce"),
            code_challenge=create_s256_code_challenge(_derive(secret, "verifier")),
            code_challenge_method="S256",
        )
        return url

    async def handle_callback(self, secret: str, params: dict[str, str]) -> OidcIdentity:
        """Return the identity for the parameters of the provider's redirect.

        Raises: NotSignedIn; IssuerUnreachable.
        """
        state = params.get("state", "").encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(state, _derive(secret, "state").encode()):
            raise NotSignedIn("This sign-in was not started in this browser", hint="Start again")
        if params.get("iss", self._issuer) != self._issuer:
            raise NotSignedIn("Another provider answered this sign-in", hint="Start again")
        if "code" not in params:
            raise NotSignedIn("The provider did not sign you in", hint="Start again")
        tokens = await self._tokens(secret, params["code"])
        claims = await self._identity_claims(tokens.get("id_token"), _derive(secret, "nonce"))
        subject = str(claims["sub"])
        if "email" not in claims:
            claims = await self._user_info(subject, tokens.get("access_token"))
        email = claims.get("email")
        verified = claims.get("email_verified") is True and isinstance(email, str)
        return OidcIdentity(Identity(self._issuer, subject), str(email) if verified else None)

    async def _tokens(self, secret: str, code: str) -> dict[str, Any]:
        provider = await self._discovered()
        form = prepare_token_request(
            "authorization_code",
            redirect_uri=self._redirect_uri,
            code=code,
            code_verifier=_derive(secret, "verifier"),
        )
        client = ClientAuth(self._client_id, self._secret, self._proof(provider))
        url, headers, form = client.prepare("POST", provider.token, dict(_FORM), form)
        tokens = await post_form(url, _PEER, headers, form)
        if "error" in tokens:
            raise NotSignedIn("The provider rejected this sign-in", hint="Start again")
        return tokens

    async def _identity_claims(self, text: object, nonce: str) -> Claims:
        if not isinstance(text, str):
            raise NotSignedIn("The provider sent no identity token", hint="Start again")
        algorithm, key_id = read_header(text)
        key = None
        if algorithm in PUBLIC_ALGORITHMS:
            key = await self._keys.find(algorithm, key_id)
        if key is None:
            raise NotSignedIn(
                "The identity token is not signed by the provider", hint="Start again"
            )
        expected = JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
            azp={"value": self._client_id},
        )
        claims = verify(text, key, algorithm, expected)
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and "azp" not in claims:
            raise NotSignedIn("The identity token is for several clients", hint="Start again")
        return claims

    async def _user_info(self, subject: str, access_token: object) -> Claims:
        """Fetch claims that the identity token lacks."""
        provider = await self._discovered()
        if provider.userinfo is None or not isinstance(access_token, str):
            return {}
        document = await fetch_json(provider.userinfo, _PEER, access_token)
        return document if document.get("sub") == subject else {}

    async def _discovered(self) -> _Discovery:
        if self._provider is None or time.monotonic() - self._read_at > _MAX_AGE_S:
            document = await fetch_json(f"{self._issuer.rstrip('/')}{_DISCOVERY}", _PEER)
            self._provider = _parse_discovery(document, self._issuer)
            self._read_at = time.monotonic()
        return self._provider

    async def _keys_url(self) -> str:
        return (await self._discovered()).keys

    def _proof(self, provider: _Discovery) -> str:
        """Return the method that authenticates this client to the provider."""
        if self._secret is None:
            return "none"
        basic = "client_secret_basic"
        return basic if basic in provider.token_auth else "client_secret_post"


def new_browser_secret() -> str:
    """Return a new secret for a browser."""
    return random_tokens.new_secret()


def _derive(secret: str, purpose: str) -> str:
    """Derive 43 characters that reveal neither the secret nor each other."""
    key = secret.encode("utf-8", "surrogatepass")
    derived = hmac.digest(key, f"polydev oidc {purpose}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(derived).decode().rstrip("=")


def _parse_discovery(document: dict[str, Any], issuer: str) -> _Discovery:
    """Parse a discovery document. Raises IssuerUnreachable if it is not the issuer's."""
    if document.get("issuer") != issuer:
        raise IssuerUnreachable(
            "The OpenID provider's issuer differs from POLYDEV_OIDC_ISSUER",
            hint="Set it to exactly the `issuer` of the provider's discovery document",
        )
    endpoints = {
        name: document.get(name)
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")
    }
    for name, url in endpoints.items():
        if url is None and name == "userinfo_endpoint":
            continue
        if not isinstance(url, str) or urlsplit(url).scheme not in _allowed_schemes(issuer):
            raise IssuerUnreachable(f"The OpenID provider has no usable {name}")
    methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    return _Discovery(
        authorize=str(endpoints["authorization_endpoint"]),
        token=str(endpoints["token_endpoint"]),
        keys=str(endpoints["jwks_uri"]),
        userinfo=endpoints["userinfo_endpoint"],
        token_auth=tuple(methods) if isinstance(methods, list) else (),
    )


def _allowed_schemes(issuer: str) -> tuple[str, ...]:
    """Allow http only for an issuer on this machine.

    The settings check that.
    """
    return ("https",) if issuer.startswith("https:") else ("https", "http")
