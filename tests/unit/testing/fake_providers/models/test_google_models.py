"""The fake Google accepts Gemini CLI's login, and is as strict as Google."""

import json

import pytest
from fake_provider_client import FormFields, Provider

from polydev.testing.fake_providers.identity.accounts import ACCOUNTS

CLIENT = "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com"
CALLBACK = "http://127.0.0.1:40123/oauth2callback"
SIGN_IN, TOKENS = "accounts.google.com", "oauth2.googleapis.com"
CODE_ASSIST, API = "cloudcode-pa.googleapis.com", "generativelanguage.googleapis.com"


async def code(provider: Provider, **changed: str) -> str:
    """Sign in as Gemini CLI does, without PKCE; return the code."""
    query = {"response_type": "code", "client_id": CLIENT, "redirect_uri": CALLBACK, "state": "S"}
    page = await provider.get(SIGN_IN, "/o/oauth2/v2/auth", params=query | changed)
    form = FormFields(await page.text()).fields
    form |= {"email": "ada@example.test", "password": "analytical-engine"}
    page = await provider.post(SIGN_IN, "/standin/sign-in", data=form)
    form = FormFields(await page.text()).fields | {"decision": "allow"}
    answer = await provider.post(SIGN_IN, "/standin/consent", data=form)
    location = answer.headers["Location"]
    assert location.startswith(changed.get("redirect_uri", CALLBACK) + "?code=")
    assert location.endswith("&state=S")
    return location.partition("code=")[2].partition("&")[0]


async def exchange(provider: Provider, **fields: str) -> tuple[int, dict]:
    answer = await provider.post(TOKENS, "/token", data={"client_id": CLIENT, **fields})
    return answer.status, await answer.json()


async def log_in(provider: Provider) -> dict:
    fields = {"grant_type": "authorization_code", "redirect_uri": CALLBACK}
    status, tokens = await exchange(provider, code=await code(provider), **fields)
    assert status == 200
    return tokens


def bearer(tokens: dict) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def test_login_works_without_pkce(provider: Provider) -> None:
    tokens = await log_in(provider)
    assert tokens["access_token"].startswith("ya29.standin-")
    assert tokens["refresh_token"].startswith("1//standin-")
    assert tokens["id_token"].count(".") == 2
    headers = bearer(tokens)
    tokens = await (await provider.post(TOKENS, "/tokeninfo", headers=headers)).json()
    assert tokens["email"] == "ada@example.test"
    user = await provider.get("www.googleapis.com", "/oauth2/v2/userinfo", headers=headers)
    assert (await user.json())["name"] == "Ada Example"


async def test_pkce_challenge_is_enforced(provider: Provider) -> None:
    given = await code(provider, code_challenge="c" * 43, code_challenge_method="S256")
    fields = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code": given}
    status, answer = await exchange(provider, code_verifier="x" * 43, **fields)
    assert (status, answer["error"]) == (400, "invalid_grant")


async def test_refresh_token_works_until_revoked(provider: Provider) -> None:
    refresh = (await log_in(provider))["refresh_token"]
    again = {"grant_type": "refresh_token", "refresh_token": refresh}
    for _ in range(3):
        status, answer = await exchange(provider, **again)
        assert (status, "refresh_token" in answer) == (200, False)
    await provider.post(TOKENS, "/revoke", data={"token": refresh})
    status, answer = await exchange(provider, **again)
    assert (status, answer["error"]) == (400, "invalid_grant")


async def test_paste_page_shows_only_the_code(provider: Provider) -> None:
    page = await provider.get(
        "codeassist.google.com", "/authcode", params={"code": "c", "state": "S"}
    )
    assert '<code id="code">c</code>' in await page.text()


@pytest.mark.parametrize("uri", ["http://evil.test/oauth2callback", "https://127.0.0.1:1/"])
async def test_unregistered_redirects_get_no_code(provider: Provider, uri: str) -> None:
    query = {"response_type": "code", "client_id": CLIENT, "redirect_uri": uri}
    assert (await provider.get(SIGN_IN, "/o/oauth2/v2/auth", params=query)).status == 400


async def test_code_assist_identifies_the_account_and_answers(provider: Provider) -> None:
    headers = bearer(await log_in(provider))
    tokens = await provider.post(
        CODE_ASSIST, "/v1internal:loadCodeAssist", json={}, headers=headers
    )
    assert (await tokens.json())["cloudaicompanionProject"]
    contents = [{"role": "user", "parts": [{"text": "Why is 3 odd?"}]}]
    body = {"model": "m", "request": {"contents": contents}}
    path = "/v1internal:streamGenerateContent"
    answer = await provider.post(CODE_ASSIST, path, json=body, headers=headers)
    chunks = [json.loads(it[6:]) for it in (await answer.text()).splitlines() if it]
    parts = [it["response"]["candidates"][0]["content"]["parts"][0] for it in chunks]
    assert "".join(part["text"] for part in parts).endswith("Why is 3 odd?")
    whole = await provider.post(
        CODE_ASSIST, "/v1internal:generateContent", json=body, headers=headers
    )
    candidate = (await whole.json())["response"]["candidates"][0]
    assert candidate["content"]["parts"][0]["text"].endswith("Why is 3 odd?")
    assert candidate["finishReason"] == "STOP"
    other = await provider.post(CODE_ASSIST, "/v1internal:other", json={}, headers=headers)
    assert other.status == 404


async def test_api_key_is_valid_for_gemini_only(provider: Provider) -> None:
    path = "/v1beta/models/gemini-x:generateContent"
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    headers = {"x-goog-api-key": ACCOUNTS[0].api_key("google")}
    answer = await provider.post(API, path, json=body, headers=headers)
    assert "candidates" in await answer.json()
    for other in (
        {},
        {"x-goog-api-key": "AIza"},
        {"x-goog-api-key": ACCOUNTS[0].api_key("openai")},
    ):
        assert (await provider.post(API, path, json=body, headers=other)).status == 401


async def test_api_keys_of_other_providers_work(provider: Provider) -> None:
    grace = ACCOUNTS[1]
    message = {"messages": [{"role": "user", "content": "hi"}]}
    headers = {"x-api-key": grace.api_key("anthropic")}
    answer = await provider.post("api.anthropic.com", "/v1/messages", json=message, headers=headers)
    assert answer.status == 200
    headers = {"Authorization": f"Bearer {grace.api_key('openai')}"}
    answer = await provider.post("api.openai.com", "/v1/responses", json={}, headers=headers)
    assert answer.status == 200
