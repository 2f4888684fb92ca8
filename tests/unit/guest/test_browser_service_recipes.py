"""Every provider's data can be used by the browser service, and nothing else can."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from polydev.guest.browser_service.recipes import UnknownProvider, load_recipe

PROVIDERS = Path(__file__).parents[3] / "src/polydev/shared/providers"
TOKEN = "t" * 40
JWT = "aa.bb.cc"
CREDENTIALS: dict[str, dict[str, Any]] = {
    "codex": {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": JWT,
            "access_token": JWT,
            "refresh_token": TOKEN,
            "account_id": "acct-1",
        },
        "last_refresh": "2026-01-01T00:00:00Z",
    },
    "claude_code": {
        "claudeAiOauth": {
            "accessToken": TOKEN,
            "refreshToken": TOKEN,
            "expiresAt": 1795487254996,
            "refreshTokenExpiresAt": None,
            "scopes": ["user:inference"],
            "subscriptionType": "max",
        }
    },
    "gemini_cli": {
        "access_token": TOKEN,
        "refresh_token": TOKEN,
        "id_token": JWT,
        "scope": "openid email",
        "token_type": "Bearer",
        "expiry_date": 1795487254996,
    },
}


@pytest.mark.parametrize("provider", sorted(CREDENTIALS))
def test_the_data_of_a_provider_is_whole(provider: str) -> None:
    recipe = load_recipe(PROVIDERS, provider)
    assert recipe.provider == provider
    assert recipe.credentials_path.startswith("/root/")
    assert recipe.paste_accepts in {"code", "callback_url"}
    assert all("/" not in host for host in recipe.url_hosts)
    for pointer in recipe.credentials_required:
        value: object = CREDENTIALS[provider]
        for key in pointer.split("/")[1:]:
            assert isinstance(value, dict)
            value = value[key]
        assert value


@pytest.mark.parametrize("provider", sorted(CREDENTIALS))
def test_the_schema_takes_credentials_and_nothing_less(provider: str) -> None:
    schema = json.loads((PROVIDERS / f"{provider}.credentials.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    whole = CREDENTIALS[provider]
    jsonschema.validate(whole, schema)
    for pointer in load_recipe(PROVIDERS, provider).credentials_required:
        *outer, inner = pointer.split("/")[1:]
        for wrong in ("", None, 7, "with blank", "x" * 20_000):
            damaged = copy.deepcopy(whole)
            place: Any = damaged
            for name in outer:
                place = place[name]
            place[inner] = wrong
            if inner == "account_id" and wrong == "with blank":
                continue
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(damaged, schema)


@pytest.mark.parametrize("provider", ["", "nobody", "../codex", "codex.toml", "Codex", "a" * 99])
def test_other_names_are_unknown(provider: str) -> None:
    with pytest.raises(UnknownProvider):
        load_recipe(PROVIDERS, provider)


@pytest.mark.parametrize("text", ["", "[login", "id = 3", 'id = "made_up"\nlogin = 3'])
def test_data_that_cannot_be_used_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "made_up.toml").write_text(text)
    with pytest.raises(UnknownProvider, match="cannot be used"):
        load_recipe(tmp_path, "made_up")
