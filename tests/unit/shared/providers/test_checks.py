"""Reports of a machine are validated and never repeated in errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.shared.errors import BadCredentials, BadOAuthUrl, UnknownProvider
from polydev.shared.providers import all_providers, check_credentials, check_oauth_url, provider

TOKEN = "made-up-token-0123456789"
JWT = "aaaa.bbbb.cccc"
GOOD: dict[str, dict[str, Any]] = {
    "codex": {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": JWT,
            "access_token": JWT,
            "refresh_token": TOKEN,
            "account_id": "account",
        },
        "last_refresh": "2026-01-01T00:00:00Z",
    },
    "claude_code": {
        "claudeAiOauth": {
            "accessToken": TOKEN,
            "refreshToken": TOKEN,
            "expiresAt": 1,
            "scopes": ["user:inference"],
        }
    },
    "gemini_cli": {
        "access_token": TOKEN,
        "refresh_token": TOKEN,
        "id_token": JWT,
        "token_type": "Bearer",
        "expiry_date": 1,
    },
}
CODEX = provider("codex")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _with(change: dict[str, Any]) -> dict[str, Any]:
    tokens = {**GOOD["codex"]["tokens"], **change}
    return {**GOOD["codex"], "tokens": {k: v for k, v in tokens.items() if v is not None}}


def test_every_provider_can_be_read() -> None:
    assert [it.id for it in all_providers()] == ["claude_code", "codex", "gemini_cli"]
    assert {it.accepts for it in all_providers()} <= {"code", "callback_url"}


def test_unknown_provider_lists_the_known_ones() -> None:
    with pytest.raises(UnknownProvider, match="nope") as caught:
        provider("nope")
    assert caught.value.hint == "Providers: claude_code, codex, gemini_cli"


@pytest.mark.parametrize("name", GOOD)
def test_valid_credentials_are_accepted(name: str) -> None:
    about = provider(name)
    canonical = check_credentials(about, GOOD[name])
    assert json.loads(canonical) == GOOD[name]
    assert check_credentials(about, json.dumps(GOOD[name], indent=4).encode()) == canonical
    assert check_credentials(about, canonical) == canonical


@pytest.mark.parametrize(
    ("reported", "fault"),
    [
        (b"not json", "are not JSON"),
        (b"\xff\xfe", "are not JSON"),
        (b"[" * 50_000, "are not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"tokens": NaN}', "are not JSON"),
        (b" " * 65_537, "larger than 65536"),
        (None, "not a JSON object"),
        ({}, "fail required"),
        (_with({"refresh_token": None}), "fail required"),
        (_with({"refresh_token": ""}), "fail pattern"),
        (_with({"id_token": "no jwt"}), "fail pattern"),
        (_with({"access_token": 7}), "fail type"),
        ({**GOOD["codex"], "more": "x" * 40_000}, "more than 32768 characters"),
        ({**GOOD["codex"], "more": ["x" * 30_000] * 3}, "larger than 65536"),
        ({**GOOD["codex"], "more": float("inf")}, "that JSON cannot represent"),
        ({**GOOD["codex"], "more": [[0] * 100] * 100}, "too many values"),
        ({**GOOD["codex"], **{f"more{n}": 0 for n in range(40)}}, "fail maxProperties"),
    ],
)
def test_invalid_credentials_are_refused(reported: object, fault: str) -> None:
    with pytest.raises(BadCredentials, match=fault):
        check_credentials(CODEX, reported)


def test_credentials_nested_too_deeply_are_refused() -> None:
    deep: Any = 0
    for _ in range(20):
        deep = [deep]
    with pytest.raises(BadCredentials, match="nested too deeply"):
        check_credentials(CODEX, {**GOOD["codex"], "more": deep})


def test_error_does_not_repeat_the_report() -> None:
    for bad in (_with({"refresh_token": f"{TOKEN} with a blank"}), f'{{"{TOKEN}": '.encode()):
        with pytest.raises(BadCredentials) as caught:
            check_credentials(CODEX, bad)
        assert TOKEN not in repr(caught.value) + caught.value.line()
        assert caught.value.__cause__ is None


@given(json_values)
def test_anything_else_is_refused_without_a_crash(reported: object) -> None:
    with pytest.raises(BadCredentials):
        check_credentials(CODEX, reported)


URL = "https://auth.openai.com/oauth/authorize?client_id=a&state=b"


def test_providers_url_is_accepted() -> None:
    assert check_oauth_url(CODEX, URL) == URL
    assert check_oauth_url(CODEX, URL.replace(".com", ".com:443"))


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "x" * 4097,
        "http://auth.openai.com/",
        "javascript:alert(1)",
        "https://auth.openai.com.evil.test/",
        "https://evil.test/?https://auth.openai.com/",
        "https://evil.test#https://auth.openai.com/",
        "https://auth.openai.com@evil.test/",
        "https://me:pw@auth.openai.com/",
        "https://auth.openai.com:8443/",
        "https://auth.openai.com:x/",
        "https://auth.openai.com\\@evil.test/",
        "https://auth.openai.com/\n",
        "https://auth.openai.com/\x1b]8;;",
        "https://auth.openai.com/ä",
        "https://[::1",
        " https://auth.openai.com/",
        "//auth.openai.com/",
    ],
)
def test_any_other_url_is_refused(url: object) -> None:
    with pytest.raises(BadOAuthUrl) as caught:
        check_oauth_url(CODEX, url)
    assert "evil" not in caught.value.line()


@given(st.text())
def test_no_text_crashes_the_check_of_urls(text: str) -> None:
    with pytest.raises(BadOAuthUrl):
        check_oauth_url(CODEX, text)
