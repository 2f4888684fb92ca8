"""Requests of a CLI's login to fake providers, and a user's sign-in."""

import base64
import hashlib
import html.parser
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from polydev.testing.fake_providers.identity.endpoints import IdentityProvider

CODEX = "app_EMoamEEZ73f0CkXaXp7hrann"
CODEX_CALLBACK = "http://127.0.0.1:1455/auth/callback"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class FormFields(html.parser.HTMLParser):
    """Names and values of a page's inputs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "input" and found.get("name"):
            self.fields[str(found["name"])] = found.get("value") or ""


@dataclass
class Attempt:
    """One login, as a CLI starts it."""

    client_id: str = CODEX
    redirect_uri: str = CODEX_CALLBACK
    host: str = "auth.openai.com"
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    state: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def query(self, **changed: str) -> dict[str, str]:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "state": self.state,
            "scope": "openid offline_access",
        } | changed

    def exchange(self, code: str, /, **changed: str) -> dict[str, str]:
        return {
            "grant_type": "authorization_code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            "code": code,
        } | changed


@dataclass
class Provider:
    client: TestClient
    clock: Clock
    calls: Path
    identity: IdentityProvider

    async def get(self, host: str, path: str, **options: object) -> ClientResponse:
        return await self._request("GET", host, path, options)

    async def post(self, host: str, path: str, **options: object) -> ClientResponse:
        return await self._request("POST", host, path, options)

    async def _request(
        self, method: str, host: str, path: str, options: dict[str, object]
    ) -> ClientResponse:
        headers = {"Host": host, **dict(options.pop("headers", {}))}
        return await self.client.request(
            method, path, headers=headers, allow_redirects=False, **options
        )

    async def sign_in(self, attempt: Attempt, decision: str = "allow") -> dict[str, str]:
        """Go through the pages; return the query of the redirect."""
        page = await self.get(attempt.host, "/oauth/authorize", params=attempt.query())
        form = FormFields(await page.text()).fields
        form |= {"email": "ada@example.test", "password": "analytical-engine"}
        page = await self.post(attempt.host, "/standin/sign-in", data=form)
        form = FormFields(await page.text()).fields | {"decision": decision}
        answer = await self.post(attempt.host, "/standin/consent", data=form)
        assert answer.status == 303
        location = answer.headers["Location"]
        assert location.startswith(attempt.redirect_uri + "?")
        return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}

    async def token(self, host: str = "auth.openai.com", **fields: str) -> tuple[int, dict]:
        answer = await self.post(host, "/oauth/token", data=fields)
        return answer.status, await answer.json()
