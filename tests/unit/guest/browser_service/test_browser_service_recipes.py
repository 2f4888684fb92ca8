"""The browser service reads every provider's data, and nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from provider_files import install_providers

from polydev.guest.browser_service.recipes import UnknownProvider, load_recipe
from polydev.shared.providers import provider_ids

SOURCES = Path(__file__).parents[4] / "src/polydev/shared/providers"
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every provider's data, as in a machine."""
    return install_providers(tmp_path / "providers")


def test_every_provider_is_tried_here() -> None:
    assert sorted(CREDENTIALS) == sorted(provider_ids())


@pytest.mark.parametrize("provider", sorted(CREDENTIALS))
def test_provider_data_is_complete(folder: Path, provider: str) -> None:
    recipe = load_recipe(folder, provider)
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
def test_schema_accepts_complete_credentials_only(folder: Path, provider: str) -> None:
    schema = json.loads((SOURCES / provider / "credentials.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    whole = CREDENTIALS[provider]
    jsonschema.validate(whole, schema)
    for pointer in load_recipe(folder, provider).credentials_required:
        *outer, inner = pointer.split("/")[1:]
        for wrong in ("", None, 7, "with blank", "x" * 20_000):
            damaged = copy.deepcopy(whole)
            parent: Any = damaged
            for name in outer:
                parent = parent[name]
            parent[inner] = wrong
            if inner == "account_id" and wrong == "with blank":
                continue
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(damaged, schema)


@pytest.mark.parametrize("provider", ["", "nobody", "../codex", "codex.toml", "Codex", "a" * 99])
def test_other_names_are_unknown(folder: Path, provider: str) -> None:
    with pytest.raises(UnknownProvider):
        load_recipe(folder, provider)


@pytest.mark.parametrize("text", ["", "[login", "id = 3", 'id = "made_up"\nlogin = 3'])
def test_unusable_data_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "made_up.toml").write_text(text)
    with pytest.raises(UnknownProvider, match="cannot be used"):
        load_recipe(tmp_path, "made_up")
