"""Simulated logins: authorization URLs and credentials in the real CLIs' formats.

They give access to nothing.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S


@dataclass(frozen=True, slots=True)
class SimulatedLogin:
    """URL and credentials of one provider's simulated login."""

    authorize: str
    client_id: str
    redirect_uri: str
    accepts: str
    credentials: Callable[[], dict[str, Any]]

    def url(self) -> str:
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "code_challenge": secrets.token_urlsafe(32),
            "code_challenge_method": "S256",
            "state": secrets.token_urlsafe(24),
        }
        return f"{self.authorize}?{urlencode(query)}"


def _codex() -> dict[str, Any]:
    now = int(time.time())
    account = f"standin-account-{secrets.token_hex(4)}"
    claims = {
        "iss": "https://auth.openai.com",
        "sub": "standin|1",
        "iat": now,
        "exp": now + _HOUR_S,
        "email": "standin@example.test",
        "https://api.openai.com/auth": {
            "chatgpt_account_id": account,
            "chatgpt_plan_type": "plus",
            "chatgpt_user_id": "standin-user",
        },
    }
    return {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": _unsigned_jwt(claims),
            "access_token": _unsigned_jwt({**claims, "jti": secrets.token_hex(8)}),
            "refresh_token": f"standin-refresh-{secrets.token_hex(16)}",
            "account_id": account,
        },
        "last_refresh": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }


def _claude_code() -> dict[str, Any]:
    now_ms = int(time.time() * 1000)
    return {
        "claudeAiOauth": {
            "accessToken": f"standin-access-{secrets.token_hex(16)}",
            "refreshToken": f"standin-refresh-{secrets.token_hex(16)}",
            "expiresAt": now_ms + 8 * _HOUR_S * 1000,
            "refreshTokenExpiresAt": now_ms + 30 * _DAY_S * 1000,
            "scopes": ["user:inference", "user:profile"],
            "subscriptionType": "max",
            "rateLimitTier": "default",
        }
    }


def _gemini_cli() -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "iss": "https://accounts.google.com",
        "sub": secrets.token_hex(8),
        "exp": now + _HOUR_S,
        "email": "standin@example.test",
    }
    return {
        "access_token": f"standin-access-{secrets.token_hex(16)}",
        "refresh_token": f"standin-refresh-{secrets.token_hex(16)}",
        "scope": "openid https://www.googleapis.com/auth/cloud-platform",
        "token_type": "Bearer",
        "id_token": _unsigned_jwt(claims),
        "expiry_date": (now + _HOUR_S) * 1000,
    }


def _unsigned_jwt(claims: dict[str, Any]) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
    return ".".join([*(text.rstrip(b"=").decode() for text in encoded), "standin"])


LOGINS = {
    "codex": SimulatedLogin(
        authorize="https://auth.openai.com/oauth/authorize",
        client_id="standin-codex",
        redirect_uri="http://localhost:1455/auth/callback",
        accepts="callback_url",
        credentials=_codex,
    ),
    "claude_code": SimulatedLogin(
        authorize="https://claude.com/cai/oauth/authorize",
        client_id="standin-claude-code",
        redirect_uri="http://localhost:45454/callback",
        accepts="code",
        credentials=_claude_code,
    ),
    "gemini_cli": SimulatedLogin(
        authorize="https://accounts.google.com/o/oauth2/v2/auth",
        client_id="standin-gemini-cli",
        redirect_uri="http://127.0.0.1:45455/oauth2callback",
        accepts="callback_url",
        credentials=_gemini_cli,
    ),
}
