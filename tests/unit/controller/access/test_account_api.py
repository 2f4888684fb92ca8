"""Test `/api/account` and `/api/admin/people` as browsers and scripts use them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from access_world import PASSWORD, TOKEN, MakeAccess, from_browser
from openid_provider import CLIENT_ID, CLIENT_SECRET, running_openid_provider
from starlette.requests import HTTPConnection

from polydev.controller.access import Access
from polydev.controller.api.http.services import Services, authenticate
from polydev.controller.api.server import build_routes, create_api
from polydev.controller.store.engine.database import Database
from polydev.shared.errors import NotAllowed

OWN = "http://localhost:4000"
ANN = {"email": "ann@example.test", "password": PASSWORD}
Api = Callable[..., httpx.AsyncClient]


def _services(store: Database, access: Access) -> Services:
    """Only what accounts need: a request that reaches further fails."""
    unused = {
        field.name: object()
        for field in dataclasses.fields(Services)
        if field.default is dataclasses.MISSING
    }
    return Services(**{**unused, "database": store, "access": access})  # type: ignore[arg-type]


@pytest.fixture
async def api(store: Database, make_access: MakeAccess) -> AsyncIterator[Any]:
    """Create API clients for given settings, each with its own cookie jar."""
    clients: list[httpx.AsyncClient] = []

    async def make(url: str = OWN, **settings: Any) -> httpx.AsyncClient:
        access = await make_access(**{"sign_up": "open", **settings})
        app = create_api(_services(store, access), "127.0.0.1", settings.get("public_url"))
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
        clients.append(httpx.AsyncClient(transport=transport, base_url=url))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def _sign_up(client: httpx.AsyncClient, name: str = "ann", **more: Any) -> dict[str, Any]:
    """Sign up; the client then sends the CSRF token as the page does."""
    body = {"email": f"{name}@example.test", "password": PASSWORD, **more}
    response = await client.post("/api/account/sign-up", json=body)
    assert response.status_code == 201, response.text
    view: dict[str, Any] = response.json()
    client.headers["x-csrf-token"] = view["csrfToken"]
    return view


def _problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


async def test_sign_up_sets_an_http_only_cookie(api: Any) -> None:
    client = await api()
    response = await client.post("/api/account/sign-up", json=ANN)
    cookie = response.headers["set-cookie"]
    assert cookie.startswith("polydev_sign_in=")
    for part in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=2592000"):
        assert part in cookie
    assert "Secure" not in cookie
    assert "Domain" not in cookie
    me = (await client.get("/api/account")).json()
    assert me == response.json()
    assert (me["email"], me["role"], me["via"]) == ("ann@example.test", "person", "sign-in")
    assert "admin" not in me["scopes"]


async def test_https_cookie_is_secure_and_host_only(api: Any) -> None:
    url = "https://polydev.example.test"
    client = await api(url, public_url=url)
    response = await client.post("/api/account/sign-up", json=ANN, headers={"origin": url})
    cookie = response.headers["set-cookie"]
    assert cookie.startswith("__Host-polydev_sign_in=")
    assert "Secure" in cookie
    assert (await client.get("/api/account")).json()["email"] == ANN["email"]


async def test_write_with_cookie_needs_csrf_token(api: Any) -> None:
    client = await api()
    await _sign_up(client)
    body = {"name": "ci", "scopes": ["read"]}
    assert (await client.post("/api/account/tokens", json=body)).status_code == 201
    for headers in (
        {"x-csrf-token": ""},
        {"x-csrf-token": "made up"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
    ):
        response = await client.post("/api/account/tokens", json=body, headers=headers)
        assert _problem(response) == (403, "not-allowed")
    assert len((await client.get("/api/account/tokens")).json()) == 1


async def test_sign_out_deletes_the_cookie(api: Any) -> None:
    client = await api()
    await _sign_up(client)
    cookie = client.cookies["polydev_sign_in"]
    assert (await client.post("/api/account/sign-out")).status_code == 204
    assert "polydev_sign_in" not in client.cookies
    client.cookies["polydev_sign_in"] = cookie
    assert _problem(await client.get("/api/account")) == (401, "not-signed-in")


async def test_wrong_password_unknown_address_and_rate_limit(api: Any) -> None:
    client = await api(sign_ins_per_hour=18)
    await _sign_up(client)
    answers = [
        await client.post("/api/account/sign-in", json=body)
        for body in (
            {**ANN, "password": "a wrong password"},
            {**ANN, "email": "ben@example.test"},
            {**ANN, "email": "cid@example.test"},
            ANN,
        )
    ]
    assert [_problem(it) for it in answers[:3]] == [(401, "not-signed-in")] * 3
    assert answers[0].json() == answers[1].json()
    assert _problem(answers[3]) == (429, "too-many-requests")
    assert 500 <= int(answers[3].headers["retry-after"]) <= 600  # six an hour for an address


async def test_invalid_requests_are_not_echoed(api: Any) -> None:
    client = await api()
    for body, code in (
        ({**ANN, "password": "short"}, "password-refused"),
        ({**ANN, "password": "very long " * 200}, "bad-request"),
        ({**ANN, "email": "nobody"}, "bad-request"),
        ({**ANN, "role": "administrator"}, "bad-request"),
        ({"email": ANN["email"]}, "bad-request"),
    ):
        response = await client.post("/api/account/sign-up", json=body)
        assert _problem(response) == (422, code)
        assert "short" not in response.text
    await _sign_up(client)
    assert _problem(await client.post("/api/account/sign-up", json=ANN)) == (409, "already-exists")


async def test_token_is_shown_once_and_limited_to_its_scopes(api: Any) -> None:
    browser, script = await api(), await api()
    await _sign_up(browser)
    body = {"name": "ci", "scopes": ["read", "account"], "expiresInDays": 1}
    made = (await browser.post("/api/account/tokens", json=body)).json()
    script.headers["authorization"] = f"Bearer {made['token']}"
    me = (await script.get("/api/account")).json()
    assert (me["via"], me["scopes"]) == (f"token:{made['tokenId']}", ["read", "account"])
    assert me["csrfToken"] is None
    [listed] = (await script.get("/api/account/tokens")).json()
    assert "token" not in listed
    more = {"name": "more", "scopes": ["connect"], "expiresInDays": 1}
    assert _problem(await script.post("/api/account/tokens", json=more)) == (403, "not-allowed")
    change = {"current": PASSWORD, "new": "a quite different one"}
    assert _problem(await script.post("/api/account/password", json=change))[0] == 403
    gone = await browser.delete(f"/api/account/tokens/{made['tokenId']}")
    assert gone.status_code == 204
    assert _problem(await script.get("/api/account")) == (401, "not-signed-in")
    again = await browser.delete(f"/api/account/tokens/{made['tokenId']}")
    assert _problem(again) == (404, "no-such-token")


async def test_password_change_ends_other_sign_ins(api: Any) -> None:
    here, there = await api(), await api()
    await _sign_up(here)
    assert (await there.post("/api/account/sign-in", json=ANN)).status_code == 200
    await here.post("/api/account/tokens", json={"name": "ci", "scopes": ["read"]})
    listed = (await here.get("/api/account/sign-ins")).json()
    assert sorted(it["current"] for it in listed) == [False, True]
    change = {"current": PASSWORD, "new": "a quite different one"}
    done = (await here.post("/api/account/password", json=change)).json()
    assert done["signInsEnded"] == 1
    assert [it["name"] for it in done["tokensKept"]] == ["ci"]
    assert (await there.get("/api/account")).status_code == 401
    assert (await here.get("/api/account")).status_code == 200


async def test_administrator_invites_disables_and_sets_roles(api: Any) -> None:
    root, ann = await api(sign_up="invitation"), await api(sign_up="invitation")
    root.headers["authorization"] = f"Bearer {TOKEN}"
    assert _problem(await ann.post("/api/account/sign-up", json=ANN)) == (403, "not-allowed")
    made = (await root.post("/api/admin/invitations", json={"email": ANN["email"]})).json()
    me = await _sign_up(ann, invitation=made["code"])
    [listed] = (await root.get("/api/admin/invitations")).json()
    assert (listed["usedBy"], "code" in listed) == (me["id"], False)
    users = (await root.get("/api/admin/people")).json()
    assert [it["email"] for it in users] == ["admin@localhost", ANN["email"]]
    assert _problem(await ann.get("/api/admin/people")) == (403, "not-allowed")
    path = f"/api/admin/people/{me['id']}"
    raised = await root.post(f"{path}/role", json={"role": "administrator"})
    assert raised.json()["role"] == "administrator"
    first = await ann.get("/api/admin/people?limit=1")
    assert 'rel="next"' in first.headers["link"]
    assert (await root.post(f"{path}/disable")).json()["disabledAt"]
    assert _problem(await ann.get("/api/account")) == (401, "not-signed-in")
    assert (await root.post(f"{path}/enable")).json()["disabledAt"] is None
    unused = (await root.post("/api/admin/invitations", json={})).json()
    gone = await root.delete(f"/api/admin/invitations/{unused['invitationId']}")
    assert gone.status_code == 204


async def test_browser_signs_in_at_the_provider(api: Any) -> None:
    async with running_openid_provider() as provider:
        client = await api(
            oidc_issuer=provider.url,
            oidc_client_id=CLIENT_ID,
            oidc_client_secret=CLIENT_SECRET,
            oidc_name="Example",
        )
        ways = (await client.get("/api/account/ways")).json()
        assert ways == {"signUp": "open", "oidc": {"name": "Example"}, "supabase": False}
        gone = await client.get("/api/account/oidc/start")
        assert gone.status_code == 303
        assert "HttpOnly" in gone.headers["set-cookie"]
        body = provider.consent(gone.headers["location"], email="a@b.test", email_verified=True)
        stranger = await api(oidc_issuer=provider.url, oidc_client_id=CLIENT_ID)
        refused = await stranger.get("/api/account/oidc/callback", params=body)
        assert _problem(refused) == (401, "not-signed-in")
        back = await client.get("/api/account/oidc/callback", params=body)
        assert (back.status_code, back.headers["location"]) == (303, "/")
        assert "polydev_oidc" not in client.cookies
        assert (await client.get("/api/account")).json()["email"] == "a@b.test"


async def test_oidc_start_fails_without_a_provider(api: Any) -> None:
    client = await api()
    for path in ("start", "callback?state=x&code=y"):
        assert _problem(await client.get(f"/api/account/oidc/{path}")) == (403, "not-allowed")


async def test_only_trusted_proxies_set_the_client_address(api: Any) -> None:
    request = {"x-forwarded-for": "203.0.113.9"}
    for trusted, source in (("", "192.0.2.7"), ("192.0.2.0/24", "203.0.113.9")):
        client = await api(trusted_proxies=trusted)
        name = f"p{len(trusted)}"
        client.headers.update(request)
        await _sign_up(client, name)
        assert (await client.get("/api/account/sign-ins")).json()[0]["source"] == source


async def test_websocket_with_cookie_needs_our_own_origin(store: Database, access: Access) -> None:
    app = build_routes(_services(store, access))
    new_sign_in = await access.accounts.sign_up(ANN["email"], PASSWORD, None, from_browser())

    def opening(origin: str | None) -> HTTPConnection:
        cookie = f"polydev_sign_in={new_sign_in.secret}"
        body = {"host": "localhost:4000", "cookie": cookie, "origin": origin}
        headers = [(name.encode(), it.encode()) for name, it in body.items() if it is not None]
        return HTTPConnection({"type": "websocket", "headers": headers, "app": app})

    assert (await authenticate(opening(OWN))).user.email == ANN["email"]
    for origin in (None, "https://evil.test"):
        with pytest.raises(NotAllowed):
            await authenticate(opening(origin))
