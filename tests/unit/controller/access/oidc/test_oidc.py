"""Test OpenID sign-in against a provider that can lie in every way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from access_world import PASSWORD, TOKEN, MakeAccess, from_browser, with_token
from aiohttp import web
from joserfc import jws, jwt
from joserfc.jwk import OctKey, RSAKey
from openid_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    Claims,
    OpenIdProvider,
    running_openid_provider,
    with_shared_secret,
)

from polydev.controller.access import Access
from polydev.controller.access.oidc.account_linking import OidcSignIn
from polydev.controller.access.sign_in.sign_ins import NewSignIn
from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import audit_log, identities
from polydev.shared.domain import Role, UserId
from polydev.shared.errors import (
    AlreadyExists,
    BadSettings,
    IssuerUnreachable,
    NotAllowed,
    NotSignedIn,
    TooManyRequests,
)

ANN = {"email": "Ann@example.test", "email_verified": True}
LATE = int(time.time()) - 120


@pytest.fixture
async def provider() -> AsyncIterator[OpenIdProvider]:
    async with running_openid_provider() as it:
        yield it


@pytest.fixture
async def access(make_access: MakeAccess, provider: OpenIdProvider) -> Access:
    return await _access(make_access, provider)


async def _access(make_access: MakeAccess, provider: OpenIdProvider, **settings: Any) -> Access:
    return await make_access(
        **{
            "sign_up": "open",
            "oidc_issuer": provider.url,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            **settings,
        }
    )


def _oidc_sign_in(access: Access) -> OidcSignIn:
    assert access.oidc_sign_in is not None
    return access.oidc_sign_in


async def _sign_in(
    access: Access, provider: OpenIdProvider, cookie: str | None = None, **claims: Any
) -> NewSignIn:
    """Start at the provider, consent, and return in the same browser."""
    url, cookie_value = await _oidc_sign_in(access).start(None, from_browser())
    params = provider.consent(url, **claims)
    return await _oidc_sign_in(access).finish(cookie_value, params, from_browser(cookie))


async def test_identity_is_recognized_at_the_next_sign_in(
    access: Access, provider: OpenIdProvider
) -> None:
    first = await _sign_in(access, provider, **ANN)
    assert (first.user.email, first.user.role) == ("ann@example.test", Role.USER)
    assert (await access.authenticate(from_browser(first.secret))).user_id == first.user.user_id
    later = await _sign_in(access, provider, email="moved@example.test", email_verified=True)
    assert later.user.user_id == first.user.user_id
    nameless = await _sign_in(access, provider)
    assert nameless.user.user_id == first.user.user_id
    other = await _sign_in(access, provider, sub="2", email="b@example.test", email_verified=True)
    assert other.user.user_id != first.user.user_id


async def test_each_browser_gets_its_own_state_nonce_and_challenge(
    access: Access, provider: OpenIdProvider
) -> None:
    departures = [await _oidc_sign_in(access).start(None, from_browser()) for _ in range(2)]
    asked = [parse_qs(urlsplit(url).query) for url, _ in departures]
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]
        assert departures[0][1] not in asked[0][name][0]
    assert asked[0]["redirect_uri"] == ["http://localhost:4000/api/account/oidc/callback"]


@pytest.mark.parametrize("break_it", ["cookie", "no cookie", "state", "no state", "iss", "code"])
async def test_only_the_starting_browser_can_finish(
    access: Access, provider: OpenIdProvider, break_it: str
) -> None:
    url, cookie_value = await _oidc_sign_in(access).start(None, from_browser())
    _, another = await _oidc_sign_in(access).start(None, from_browser())
    params = provider.consent(url, **ANN)
    returned = {
        "cookie": (another, params),
        "no cookie": (None, params),
        "state": (cookie_value, {**params, "state": "made up"}),
        "no state": (cookie_value, {"code": params["code"]}),
        "iss": (cookie_value, {**params, "iss": "https://evil.test"}),
        "code": (cookie_value, {"state": params["state"]}),
    }[break_it]
    with pytest.raises(NotSignedIn):
        await _oidc_sign_in(access).finish(*returned, from_browser())


async def test_code_works_once(access: Access, provider: OpenIdProvider) -> None:
    url, cookie_value = await _oidc_sign_in(access).start(None, from_browser())
    params = provider.consent(url, **ANN)
    await _oidc_sign_in(access).finish(cookie_value, params, from_browser())
    with pytest.raises(NotSignedIn):
        await _oidc_sign_in(access).finish(cookie_value, params, from_browser())


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"iss": "https://evil.test"},
        {"aud": "somebody-else"},
        {"aud": ["somebody-else"]},
        {"aud": None},
        {"aud": [CLIENT_ID, "x"], "azp": "x"},
        {"aud": [CLIENT_ID, "x"]},
        {"exp": LATE},
        {"exp": None},
        {"exp": "tomorrow"},
        {"iat": int(time.time()) + 600},
        {"nbf": int(time.time()) + 600},
        {"sub": None},
        {"sub": 7},
    ],
)
async def test_identity_token_with_wrong_claims_is_refused(
    access: Access, provider: OpenIdProvider, claims: Claims
) -> None:
    with pytest.raises(NotSignedIn):
        await _sign_in(access, provider, **ANN, **claims)


async def test_unsigned_identity_token_is_refused(access: Access, provider: OpenIdProvider) -> None:
    stranger = RSAKey.generate_key(2048, private=True)
    public = provider.key.as_pem(private=False)

    def unsigned(claims: Claims) -> str:
        return jwt.encode({"alg": "none"}, claims, OctKey.import_key("x"), algorithms=["none"])

    def tampered(claims: Claims) -> str:
        head, _, tail = provider.signed(claims).split(".")
        body = provider.signed({**claims, "sub": "somebody else"}).split(".")[1]
        return f"{head}.{body}.{tail}"

    forgeries = [
        lambda claims: provider.signed_by(stranger, claims),
        lambda claims: with_shared_secret(public, claims, "first"),
        lambda claims: with_shared_secret(CLIENT_SECRET.encode(), claims, "first"),
        unsigned,
        tampered,
        lambda claims: provider.signed(claims).rpartition(".")[0] + ".",
        lambda _: jws.serialize_compact({"alg": "RS256", "kid": "first"}, b"[]", provider.key),
        lambda _: "no token at all",
        lambda _: "x" * 20_000,
    ]
    for forge in forgeries:
        provider.sign = forge
        with pytest.raises(NotSignedIn):
            await _sign_in(access, provider, **ANN)
    provider.sign = provider.signed
    await _sign_in(access, provider, **ANN)


async def test_unknown_keys_are_fetched_at_a_limited_rate(
    access: Access, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _sign_in(access, provider, **ANN)
    provider.key = RSAKey.generate_key(2048, {"kid": "second", "use": "sig"}, private=True)
    provider.published.append(provider.public(provider.key))
    for _ in range(3):
        with pytest.raises(NotSignedIn):
            await _sign_in(access, provider, **ANN)
    assert provider.asked.count("/keys") == 1
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 61)
    await _sign_in(access, provider, **ANN)
    assert provider.asked.count("/keys") == 2


@pytest.mark.parametrize(
    "claims", [{}, {"email": "ann@example.test"}, {**ANN, "email_verified": "true"}]
)
async def test_unverified_address_is_refused(
    access: Access, provider: OpenIdProvider, claims: Claims
) -> None:
    with pytest.raises(NotAllowed, match="not verified"):
        await _sign_in(access, provider, **claims)


async def test_address_can_come_from_userinfo(access: Access, provider: OpenIdProvider) -> None:
    provider.user_info = {"sub": "subject-2", **ANN}
    with pytest.raises(NotAllowed, match="not verified"):  # another user's address
        await _sign_in(access, provider)
    provider.user_info = {"sub": "subject-1", **ANN}
    assert (await _sign_in(access, provider)).user.email == "ann@example.test"


async def test_address_alone_links_no_account(
    access: Access, provider: OpenIdProvider, store: Database
) -> None:
    there = await access.accounts.sign_up("ann@example.test", PASSWORD, None, from_browser())
    other = await access.accounts.sign_up("ben@example.test", PASSWORD, None, from_browser())
    for cookie in (None, other.secret, "made up"):
        with pytest.raises(AlreadyExists, match="already"):
            await _sign_in(access, provider, cookie, **ANN)
    with pytest.raises(NotAllowed):
        await _sign_in(
            access, provider, there.secret, email="ann@example.test", email_verified=False
        )
    linked = await _sign_in(access, provider, there.secret, **ANN)
    assert linked.user.user_id == there.user.user_id
    assert (await _sign_in(access, provider)).user.user_id == there.user.user_id
    async with store.read() as connection:
        rows = (await connection.execute(sa.select(identities.c.user_id))).scalars().all()
        actions = (await connection.execute(sa.select(audit_log.c.action))).scalars().all()
    assert rows == [there.user.user_id]
    assert actions.count("account.link") == 1


async def test_sign_up_setting_applies_to_the_provider(
    make_access: MakeAccess, provider: OpenIdProvider
) -> None:
    access = await _access(make_access, provider, sign_up="invitation")
    with pytest.raises(NotAllowed, match="invitation"):
        await _sign_in(access, provider, **ANN)
    root = await access.authenticate(with_token(TOKEN))
    _, code = await access.invitations.create(root, None, Role.ADMINISTRATOR, timedelta(days=1))
    url, cookie_value = await _oidc_sign_in(access).start(code, from_browser())
    assert code not in url
    new_sign_in = await _oidc_sign_in(access).finish(
        cookie_value, provider.consent(url, **ANN), from_browser()
    )
    assert new_sign_in.user.role is Role.ADMINISTRATOR
    closed = await _access(make_access, provider, sign_up="closed")
    assert (await _sign_in(closed, provider)).user.user_id == new_sign_in.user.user_id


async def test_disabled_user_cannot_sign_in(access: Access, provider: OpenIdProvider) -> None:
    new_sign_in = await _sign_in(access, provider, **ANN)
    root = await access.authenticate(with_token(TOKEN))
    await access.administration.disable(root, UserId(new_sign_in.user.user_id))
    with pytest.raises(NotSignedIn, match="disabled"):
        await _sign_in(access, provider, **ANN)


async def test_misbehaving_provider_is_reported(
    make_access: MakeAccess, provider: OpenIdProvider
) -> None:
    right = dict(provider.document)
    for broken in (
        {**right, "issuer": "https://evil.test"},
        {**right, "token_endpoint": None},
        {**right, "jwks_uri": "file:///etc/passwd"},
        {**right, "padding": "x" * 300_000},
        {},
    ):
        provider.document = broken
        with pytest.raises(IssuerUnreachable):
            await _oidc_sign_in(await _access(make_access, provider)).start(None, from_browser())
    provider.document = right
    access = await _access(make_access, provider)
    provider.answer_keys = lambda: web.Response(status=302, headers={"location": "/keys"})
    with pytest.raises(IssuerUnreachable):
        await _sign_in(access, provider, **ANN)


async def test_unresponsive_provider_times_out(
    make_access: MakeAccess, provider: OpenIdProvider
) -> None:
    provider.url = "http://127.0.0.1:9"
    access = await _access(make_access, provider)
    with pytest.raises(IssuerUnreachable, match="OpenID provider"):
        await _oidc_sign_in(access).start(None, from_browser())


async def test_oidc_sign_ins_are_rate_limited(
    make_access: MakeAccess, provider: OpenIdProvider
) -> None:
    access = await _access(make_access, provider, sign_ins_per_hour=12)
    await _sign_in(access, provider, **ANN)
    with pytest.raises(TooManyRequests):
        await _oidc_sign_in(access).start(None, from_browser())


@pytest.mark.parametrize("url", ["http://provider.example.test", "http://10.0.0.1"])
async def test_provider_needs_https(make_access: MakeAccess, url: str) -> None:
    with pytest.raises(BadSettings, match="POLYDEV_OIDC_ISSUER"):
        await make_access(oidc_issuer=url, oidc_client_id="x")
