"""The identity provider enforces every step of a login, like the real ones."""

import json

import pytest
from fake_provider_client import CODEX, Attempt, FormFields, Provider

CLAUDE = Attempt(
    "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "http://localhost:40123/callback", "claude.com"
)


async def test_code_works_once_and_state_is_returned(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    assert back["state"] == attempt.state
    status, tokens = await provider.token(**attempt.exchange(back["code"]))
    assert status == 200
    assert tokens["refresh_token"].startswith("rt_standin_")
    assert tokens["id_token"].count(".") == tokens["access_token"].count(".") == 2


async def test_claude_code_sends_json_and_gets_its_account(provider: Provider) -> None:
    back = await provider.sign_in(CLAUDE)
    body = CLAUDE.exchange(back["code"], state=back["state"])
    answer = await provider.post("platform.claude.com", "/v1/oauth/token", json=body)
    tokens = await answer.json()
    assert tokens["access_token"].startswith("sk-ant-oat01-standin-")
    assert tokens["account"]["email_address"] == "ada@example.test"
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    profile = await provider.get("api.anthropic.com", "/api/oauth/profile", headers=headers)
    assert (await profile.json())["account"]["email"] == "ada@example.test"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"code_verifier": "x" * 43}, "code_verifier"),
        ({"code_verifier": ""}, "code_verifier"),
        ({"redirect_uri": "http://127.0.0.1:1457/auth/callback"}, "redirect_uri"),
        ({"code": "code_standin_made-up"}, "unknown"),
        ({"client_id": CLAUDE.client_id}, "unknown"),
    ],
)
async def test_code_needs_its_client_uri_and_verifier(
    provider: Provider, changed: dict[str, str], why: str
) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    status, answer = await provider.token(**attempt.exchange(back["code"], **changed))
    assert (status, answer["error"]) == (400, "invalid_grant")
    assert why in answer["error_description"]


async def test_a_code_expires_after_a_minute(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    provider.clock.now += 61
    status, answer = await provider.token(**attempt.exchange(back["code"]))
    assert status == 400
    assert "expired" in answer["error_description"]


async def test_reused_code_revokes_its_tokens(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    _, tokens = await provider.token(**attempt.exchange(back["code"]))
    status, _ = await provider.token(**attempt.exchange(back["code"]))
    assert status == 400
    status, answer = await provider.token(**refresh(tokens["refresh_token"]))
    assert status == 401
    assert answer["error"]["code"] == "refresh_token_invalidated"


async def test_refresh_tokens_work_once_and_reuse_revokes_the_family(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    _, first = await provider.token(**attempt.exchange(back["code"]))
    status, second = await provider.token(**refresh(first["refresh_token"]))
    assert status == 200
    assert second["refresh_token"] != first["refresh_token"]
    status, answer = await provider.token(**refresh(first["refresh_token"]))
    assert (status, answer["error"]["code"]) == (401, "refresh_token_reused")
    status, answer = await provider.token(**refresh(second["refresh_token"]))
    assert (status, answer["error"]["code"]) == (401, "refresh_token_invalidated")
    assert await account_status(provider, second["access_token"]) == 401


async def test_revoking_any_token_ends_the_sign_in(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    _, tokens = await provider.token(**attempt.exchange(back["code"]))
    assert await account_status(provider, tokens["access_token"]) == 200
    await provider.post("auth.openai.com", "/oauth/revoke", json={"token": tokens["refresh_token"]})
    assert await account_status(provider, tokens["access_token"]) == 401


async def test_access_tokens_expire(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    _, tokens = await provider.token(**attempt.exchange(back["code"]))
    provider.clock.now += tokens["expires_in"] + 1
    assert await account_status(provider, tokens["access_token"]) == 401


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://evil.example/auth/callback",
        "http://127.0.0.1:1455/elsewhere",
        "http://127.0.0.1.evil.example:1455/auth/callback",
        "http://127.0.0.1:1455/auth/callback?next=1",
        "",
    ],
)
async def test_unregistered_redirect_is_refused(provider: Provider, redirect_uri: str) -> None:
    query = Attempt().query(redirect_uri=redirect_uri)
    answer = await provider.get("auth.openai.com", "/oauth/authorize", params=query)
    assert answer.status == 400
    assert "Location" not in answer.headers


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
    ],
)
async def test_login_without_pkce_is_refused(
    provider: Provider, changed: dict[str, str], error: str
) -> None:
    query = Attempt().query(**changed)
    answer = await provider.get("auth.openai.com", "/oauth/authorize", params=query)
    assert answer.status == 303
    assert f"error={error}" in answer.headers["Location"]


async def test_the_wrong_password_shows_the_form_again(provider: Provider) -> None:
    page = await provider.get("auth.openai.com", "/oauth/authorize", params=Attempt().query())
    form = FormFields(await page.text()).fields
    form |= {"email": "ada@example.test", "password": "guess"}
    answer = await provider.post("auth.openai.com", "/standin/sign-in", data=form)
    assert answer.status == 403
    again = FormFields(await answer.text()).fields
    assert again["sign_in"] == form["sign_in"]
    assert again["email"] == "ada@example.test"
    consent = await provider.post(
        "auth.openai.com",
        "/standin/consent",
        data={"sign_in": form["sign_in"], "decision": "allow"},
    )
    assert consent.status == 400  # consent without a sign-in


async def test_denial_redirects_without_a_code(provider: Provider) -> None:
    back = await provider.sign_in(Attempt(), decision="deny")
    assert back["error"] == "access_denied"
    assert "code" not in back


async def test_the_code_page_shows_code_and_state(provider: Provider) -> None:
    uri = "https://platform.claude.com/oauth/code/callback"
    back = await provider.sign_in(Attempt(CLAUDE.client_id, uri, "claude.com"))
    page = await provider.get("platform.claude.com", "/oauth/code/callback", params=back)
    assert f">{back['code']}#{back['state']}</code>" in await page.text()


async def test_forms_submit_themselves_only_on_request(provider: Provider) -> None:
    async def opened() -> str:
        query = Attempt().query()
        page = await provider.get("auth.openai.com", "/oauth/authorize", params=query)
        return await page.text()

    assert "<script" not in await opened()
    provider.identity.approve_automatically = True
    page = await opened()
    assert "requestSubmit" in page
    assert FormFields(page).fields["password"]


async def test_client_input_is_escaped(provider: Provider) -> None:
    params = {"code": "<script>alert(1)</script>", "state": "x"}
    page = await provider.get("platform.claude.com", "/oauth/code/callback", params=params)
    assert "<script>" not in await page.text()


async def test_call_log_contains_calls_but_no_secret(provider: Provider) -> None:
    attempt = Attempt()
    back = await provider.sign_in(attempt)
    _, tokens = await provider.token(**attempt.exchange(back["code"]))
    await account_status(provider, tokens["access_token"])
    lines = provider.calls.read_text()
    events = [json.loads(line) for line in lines.splitlines()]
    assert {"code-issued", "tokens-issued", "call"} <= {event["event"] for event in events}
    assert events[-1]["path"] == "/backend-api/wham/accounts/check"
    for secret in (back["code"], attempt.state, "analytical-engine", *tokens.values()):
        assert len(str(secret)) < 8 or str(secret) not in lines
    assert provider.calls.stat().st_mode & 0o777 == 0o600


def refresh(token: str) -> dict[str, str]:
    return {"grant_type": "refresh_token", "client_id": CODEX, "refresh_token": token}


async def account_status(provider: Provider, access_token: str) -> int:
    headers = {"Authorization": f"Bearer {access_token}"}
    path = "/backend-api/wham/accounts/check"
    return (await provider.get("chatgpt.com", path, headers=headers)).status
