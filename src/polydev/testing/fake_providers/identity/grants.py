"""Authorization codes, access tokens and refresh tokens, and their validity.

The identity endpoints issue, redeem, rotate and revoke; the model endpoints look up a token's
owner. Stores only hashes, in memory; knows no HTTP. Rules: RFC 7636 (PKCE, S256 only), RFC 6749
section 4.1.2 (codes single-use), RFC 9700 section 4.14.2 (refresh tokens single-use; reuse revokes
the family).
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from polydev.testing.fake_providers.identity.accounts import API_KEYS, Account, Client

CODE_LIFETIME_S = 60.0
ACCESS_TOKEN_LIFETIME_S = {"openai": 3600, "anthropic": 8 * 3600, "google": 3599}
CODE_PREFIX = "code_standin_"


class GrantError(Exception):
    """A refused request; `error` is the OAuth error code."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason


@dataclass(frozen=True)
class AuthorizationRequest:
    client: Client
    redirect_uri: str
    code_challenge: str
    state: str
    scope: str


@dataclass(frozen=True)
class IssuedTokens:
    account: Account
    scope: str
    access_token: str
    refresh_token: str
    id_token: str
    expires_in_s: int


@dataclass
class _Family:
    """All tokens that descend from one sign-in."""

    client: Client
    account: Account
    scope: str
    revoked: bool = False
    refresh_hash: str = ""


@dataclass
class _Code:
    request: AuthorizationRequest
    account: Account
    expires_at: float
    family: _Family | None = None  # set once redeemed


@dataclass
class Grants:
    """Everything granted since the start; `clock` returns Unix seconds.

    `first_lifetime_s` is the lifetime of a sign-in's first access token; later ones live as long as
    at the provider. (If those were short-lived too, the CLIs, which refresh minutes early, would
    only refresh.)
    """

    first_lifetime_s: int | None = None
    clock: Callable[[], float] = time.time
    _codes: dict[str, _Code] = field(default_factory=dict)
    _access: dict[str, tuple[_Family, float]] = field(default_factory=dict)
    _refresh: dict[str, _Family] = field(default_factory=dict)

    def issue_code(self, request: AuthorizationRequest, account: Account) -> str:
        code = CODE_PREFIX + secrets.token_urlsafe(24)
        self._codes[_hash(code)] = _Code(request, account, self.clock() + CODE_LIFETIME_S)
        return code

    def redeem(self, client: Client, code: str, redirect_uri: str, verifier: str) -> IssuedTokens:
        """Exchange a code. A second use is refused and revokes the first one's tokens."""
        known = self._codes.get(_hash(code))
        if known is None or known.request.client != client:
            raise GrantError("invalid_grant", "the code is unknown")
        if known.family is not None:
            known.family.revoked = True
            raise GrantError("invalid_grant", "the code was used before")
        if self.clock() > known.expires_at:
            raise GrantError("invalid_grant", "the code has expired")
        if redirect_uri != known.request.redirect_uri:
            raise GrantError("invalid_grant", "redirect_uri is not the one of the request")
        challenge = known.request.code_challenge
        if challenge and not verifier_matches(verifier, challenge):
            raise GrantError("invalid_grant", "code_verifier does not match the challenge")
        known.family = _Family(client, known.account, known.request.scope)
        return self._issue(known.family, self.first_lifetime_s)

    def rotate(self, client: Client, refresh_token: str) -> IssuedTokens:
        """Exchange a refresh token for new tokens; each works once.

        A client whose tokens do not rotate keeps its refresh token, and gets no new one.
        """
        presented = _hash(refresh_token)
        family = self._refresh.get(presented)
        if family is None or family.client != client:
            raise GrantError("refresh_token_invalidated", "the refresh token is unknown")
        if family.revoked:
            raise GrantError("refresh_token_invalidated", "the sign-in was revoked")
        if family.refresh_hash != presented:
            family.revoked = True
            raise GrantError("refresh_token_reused", "the refresh token was used before")
        return self._issue(family)

    def revoke(self, token: str) -> None:
        """Revoke a token's sign-in; unknown tokens are ignored (RFC 7009)."""
        presented = _hash(token)
        family = self._refresh.get(presented)
        if family is None and presented in self._access:
            family = self._access[presented][0]
        if family is not None:
            family.revoked = True

    def account_of(self, access_token: str, provider: str) -> Account | None:
        """Return the owner of a valid access token of that provider."""
        found = self._access.get(_hash(access_token))
        if found is None:
            return None
        family, expires_at = found
        dead = family.revoked or family.client.provider != provider or self.clock() > expires_at
        return None if dead else family.account

    def _issue(self, family: _Family, lifetime_s: int | None = None) -> IssuedTokens:
        lifetime_s = lifetime_s or ACCESS_TOKEN_LIFETIME_S[family.client.provider]
        expires_at = self.clock() + lifetime_s
        access, refresh, identity = _new_tokens(family, int(self.clock()), int(expires_at))
        if family.client.rotates or not family.refresh_hash:
            family.refresh_hash = _hash(refresh)
            self._refresh[family.refresh_hash] = family
        else:
            refresh = ""
        self._access[_hash(access)] = (family, expires_at)
        return IssuedTokens(family.account, family.scope, access, refresh, identity, lifetime_s)


def verifier_matches(verifier: str, challenge: str) -> bool:
    """Check a PKCE verifier: RFC 7636 section 4.6, S256."""
    computed = _base64url(hashlib.sha256(verifier.encode()).digest())
    return hmac.compare_digest(computed.encode(), challenge.encode())


def _new_tokens(family: _Family, now: int, expires_at: int) -> tuple[str, str, str]:
    random = secrets.token_urlsafe(32)
    if family.client.provider == "anthropic":
        access = f"sk-ant-oat01-standin-{random}"
        return access, f"sk-ant-ort01-standin-{secrets.token_urlsafe(32)}", ""
    if family.client.provider == "google":
        access = f"ya29.standin-{random}"
        claims = _google_claims(family, now, expires_at)
        return access, f"1//standin-{secrets.token_urlsafe(32)}", _unsigned_jwt(claims)
    claims = _openai_claims(family.account, now, expires_at)
    identity = {**claims, "aud": [family.client.client_id]}
    access_claims = {**claims, "aud": ["https://api.openai.com/v1"], "jti": random}
    refresh = f"rt_standin_{secrets.token_urlsafe(32)}"
    return _unsigned_jwt(access_claims), refresh, _unsigned_jwt(identity)


def _google_claims(family: _Family, now: int, expires_at: int) -> dict[str, object]:
    return {
        "iss": "https://accounts.google.com",
        "azp": family.client.client_id,
        "aud": family.client.client_id,
        "sub": str(int(family.account.identifier("user").replace("-", ""), 16))[:21],
        "email": family.account.email,
        "email_verified": True,
        "iat": now,
        "exp": expires_at,
    }


def _openai_claims(account: Account, now: int, expires_at: int) -> dict[str, object]:
    organization = {
        "id": f"org-{account.identifier('organization')}",
        "is_default": True,
        "role": "owner",
        "title": "Personal",
    }
    return {
        "iss": "https://auth.openai.com",
        "sub": f"standin|{account.identifier('user')}",
        "iat": now,
        "exp": expires_at,
        "email": account.email,
        "email_verified": True,
        "https://api.openai.com/profile": {"email": account.email},
        "https://api.openai.com/auth": {
            "chatgpt_account_id": account.identifier("account"),
            "chatgpt_plan_type": "plus",
            "chatgpt_user_id": f"user-{account.identifier('user')}",
            "user_id": f"user-{account.identifier('user')}",
            "organizations": [organization],
        },
    }


def _unsigned_jwt(claims: dict[str, object]) -> str:
    # The signature is never checked: tokens are looked up by hash, and CLIs only read the claims.
    return ".".join((JWT_HEADER, _base64url(json.dumps(claims).encode()), _base64url(b"unsigned")))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


JWT_HEADER = _base64url(b'{"alg":"none","typ":"JWT","kid":"standin"}')

# Every token starts with one of these; tests search logs and files for them.
TOKEN_PREFIXES = (
    "sk-ant-oat01-standin-",
    "sk-ant-ort01-standin-",
    "rt_standin_",
    "ya29.standin-",
    "1//standin-",
    CODE_PREFIX,
    JWT_HEADER + ".",
    *(prefix for prefix, _ in API_KEYS.values()),
)
