"""Test access tokens of a Supabase project."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from access_world import PASSWORD, TOKEN, MakeAccess, from_browser, with_token
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey
from openid_provider import OpenIdProvider, running_openid_provider, with_shared_secret

from polydev.controller.access import Access
from polydev.shared.domain import Scope
from polydev.shared.errors import BadSettings, IssuerUnreachable, NotAllowed, NotSignedIn

SECRET = "a-jwt-secret-of-the-tests-that-is-long-enough"
URL = "https://project.example.test"
ANN = str(uuid.uuid4())
SETTINGS = {"SUPABASE_URL": f"{URL}/", "SUPABASE_JWT_SECRET": SECRET}


def _claims(url: str = URL, **claims: Any) -> dict[str, Any]:
    all_claims = {
        "iss": f"{url}/auth/v1",
        "aud": "authenticated",
        "role": "authenticated",
        "sub": ANN,
        "email": "Ann@example.test",
        "exp": int(time.time()) + 3600,
        "iat": int(time.time()),
        "is_anonymous": False,
        **claims,
    }
    return {name: value for name, value in all_claims.items() if value is not None}


def _signed(claims: dict[str, Any], key: Key | None = None, **header: str) -> str:
    key = key or OctKey.import_key(SECRET)
    header = {"alg": "HS256", "typ": "JWT", **header}
    return jwt.encode(header, claims, key, algorithms=[header["alg"]])


@pytest.fixture
async def access(make_access: MakeAccess) -> Access:
    return await make_access(**SETTINGS)


@pytest.fixture
async def project() -> AsyncIterator[OpenIdProvider]:
    """A project that signs with its own public keys."""
    async with running_openid_provider() as it:
        it.key = ECKey.generate_key("P-256", {"kid": "first", "use": "sig"}, private=True)
        it.published = [it.public(it.key)]
        yield it


async def test_supabase_user_keeps_their_id(access: Access) -> None:
    token = with_token(_signed(_claims()))
    callers = await asyncio.gather(*(access.authenticate(token) for _ in range(4)))
    assert {(it.user_id, it.user.email, it.via) for it in callers} == {
        (ANN, "ann@example.test", "supabase")
    }
    callers[0].require(Scope.ACCOUNT)
    with pytest.raises(NotAllowed):
        callers[0].require(Scope.ADMIN)
    assert len(await access.administration.users()) == 2


async def test_phone_only_user_is_accepted(access: Access) -> None:
    caller = await access.authenticate(with_token(_signed(_claims(email="", phone="15550100"))))
    assert caller.user.email == f"{ANN}@supabase.invalid"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example.test/auth/v1"},
        {"iss": None},
        {"aud": "anon"},
        {"aud": None},
        {"role": "anon"},
        {"role": "service_role"},
        {"role": None},
        {"exp": int(time.time()) - 60},
        {"exp": None},
        {"nbf": int(time.time()) + 600},
        {"sub": "admin"},
        {"sub": ""},
        {"sub": None},
        {"email": "nobody"},
    ],
)
async def test_token_of_no_user_is_refused(access: Access, claims: dict[str, Any]) -> None:
    with pytest.raises(NotSignedIn) as caught:
        await access.authenticate(with_token(_signed(_claims(**claims))))
    assert SECRET not in caught.value.line()


async def test_anonymous_users_are_refused(access: Access) -> None:
    with pytest.raises(NotAllowed, match="Anonymous"):
        await access.authenticate(with_token(_signed(_claims(is_anonymous=True, email=""))))


async def test_clock_leeway_is_allowed(access: Access) -> None:
    token = _signed(_claims(exp=int(time.time()) - 10))
    assert (await access.authenticate(with_token(token))).user_id == ANN


async def test_only_the_projects_secret_verifies(access: Access, project: OpenIdProvider) -> None:
    head, body, tail = _signed(_claims()).split(".")
    forged = [
        _signed(_claims(), OctKey.import_key("another secret that is long enough too")),
        _signed(_claims(), OctKey.import_key(SECRET), alg="HS512"),
        _signed(_claims(), OctKey.import_key("x"), alg="none"),
        f"{head}.{body}.",
        f"{head}.{_signed(_claims(sub=str(uuid.uuid4()))).split('.')[1]}.{tail}",
        f"{head}.{body}.{tail[:-4]}AAAA",
        "a.b.c",
        "..",
    ]
    for token in forged:
        with pytest.raises(NotSignedIn):
            await access.authenticate(with_token(token))


async def test_known_address_is_not_linked(make_access: MakeAccess) -> None:
    access = await make_access(sign_up="open", **SETTINGS)
    await access.accounts.sign_up("ann@example.test", PASSWORD, None, from_browser())
    with pytest.raises(NotAllowed, match="already has this e-mail address"):
        await access.authenticate(with_token(_signed(_claims())))


async def test_disabled_user_is_refused(access: Access) -> None:
    token = with_token(_signed(_claims()))
    caller = await access.authenticate(token)
    await access.administration.disable(
        await access.authenticate(with_token(TOKEN)), caller.user_id
    )
    with pytest.raises(NotSignedIn, match="disabled"):
        await access.authenticate(token)


async def test_project_with_public_keys_accepts_only_those(
    make_access: MakeAccess, project: OpenIdProvider
) -> None:
    access = await make_access(SUPABASE_URL=project.url)
    claims = _claims(project.url)
    token = _signed(claims, project.key, alg="ES256", kid="first")
    for _ in range(3):
        assert (await access.authenticate(with_token(token))).user_id == ANN
    assert project.asked == ["/auth/v1/.well-known/jwks.json"]
    public = project.key.as_pem(private=False)
    stranger = ECKey.generate_key("P-256", private=True)
    for forged in (
        with_shared_secret(public, claims, "first"),
        _signed(claims, stranger, alg="ES256", kid="first"),
        _signed(claims, stranger, alg="ES256", kid="unknown"),
        _signed(claims),
    ):
        with pytest.raises(NotSignedIn):
            await access.authenticate(with_token(forged))


async def test_shared_secret_among_public_keys_is_ignored(
    make_access: MakeAccess, project: OpenIdProvider
) -> None:
    project.published.append({**OctKey.import_key(SECRET).as_dict(private=True), "kid": "oct"})
    access = await make_access(SUPABASE_URL=project.url)
    with pytest.raises(NotSignedIn):
        await access.authenticate(with_token(_signed(_claims(project.url), kid="oct")))


async def test_known_keys_stay_valid_while_the_project_is_down(
    make_access: MakeAccess, project: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = await make_access(SUPABASE_URL=project.url)
    token = with_token(_signed(_claims(project.url), project.key, alg="ES256", kid="first"))
    project.answer_keys = _raise
    with pytest.raises(IssuerUnreachable):
        await access.authenticate(token)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 6)
    project.answer_keys = None
    assert (await access.authenticate(token)).user_id == ANN
    project.answer_keys = _raise
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 7200)
    assert (await access.authenticate(token)).user_id == ANN


def _raise() -> Any:
    raise RuntimeError("the project is down")


async def test_invalid_settings_are_refused(make_access: MakeAccess) -> None:
    with pytest.raises(BadSettings, match="SUPABASE_URL"):
        await make_access(SUPABASE_JWT_SECRET=SECRET)
    with pytest.raises(BadSettings, match="fewer than 32"):
        await make_access(SUPABASE_URL=URL, SUPABASE_JWT_SECRET="short")
    with pytest.raises(BadSettings, match="SUPABASE_URL"):
        await make_access(SUPABASE_URL="http://project.example.test")
