"""A local OpenID provider with real keys.

It signs any claims, so that a test can forge tokens in every way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import Key, RSAKey

CLIENT_ID = "polydev-of-the-tests"
CLIENT_SECRET = "a-client-secret-of-the-tests"
Claims = dict[str, Any]


class OpenIdProvider:
    """Discovery, keys, token endpoint and userinfo. `url` is the issuer."""

    def __init__(self) -> None:
        self.url = ""
        self.key: Key = RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}, private=True)
        self.published: list[dict[str, Any]] = [self.public(self.key)]
        self.document: dict[str, Any] = {}
        self.claims: Claims = {}
        """Claims of its identity tokens."""
        self.user_info: Claims | None = None
        self.sign: Callable[[Claims], str] = self.signed
        self.asked: list[str] = []
        """The requested paths."""
        self.answer_keys: Callable[[], web.StreamResponse] | None = None
        self._codes: dict[str, dict[str, str]] = {}

    @staticmethod
    def public(key: Key) -> dict[str, Any]:
        return dict(key.as_dict(private=False))

    def signed(self, claims: Claims) -> str:
        return self.signed_by(self.key, claims)

    def signed_by(self, key: Key, claims: Claims, algorithm: str = "RS256") -> str:
        header = {"alg": algorithm, "kid": self.key.kid}
        return jwt.encode(header, claims, key, algorithms=[algorithm])

    def consent(self, url: str, **claims: Any) -> dict[str, str]:
        """Consent at an authorization URL; return the redirect's parameters."""
        asked = dict(parse_qsl(urlsplit(url).query))
        assert url.startswith(f"{self.url}/authorize?")
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        self.claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": "subject-1",
            "nonce": asked["nonce"],
            "iat": int(time.time()),
            "exp": int(time.time()) + 300,
            **claims,
        }
        return {"state": asked["state"], "code": code}

    async def _discovery(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.json_response(self.document)

    async def _keys(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.answer_keys is not None:
            return self.answer_keys()
        return web.json_response({"keys": self.published})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        secret = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        asked = self._codes.pop(str(form.get("code")), None)
        if asked is None or request.headers.get("authorization") != f"Basic {secret}":
            return web.json_response({"error": "invalid_grant"}, status=400)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        assert asked["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
        assert asked["redirect_uri"] == form["redirect_uri"]
        id_token = self.sign(self.claims)
        return web.json_response(
            {"access_token": "at", "token_type": "Bearer", "id_token": id_token}
        )

    async def _user_info(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer at"
        return web.json_response(self.user_info or {})

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/auth/v1/.well-known/jwks.json", self._keys)
        app.router.add_post("/token", self._token)
        app.router.add_get("/userinfo", self._user_info)
        return app


def with_shared_secret(secret: bytes, claims: Claims, key_id: str) -> str:
    """Sign with HS256 and any secret, even a public key, which libraries refuse."""
    parts = [json.dumps(it).encode() for it in ({"alg": "HS256", "kid": key_id}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(it).rstrip(b"=") for it in parts)
    signature = hmac.digest(secret, signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@asynccontextmanager
async def running_openid_provider() -> AsyncIterator[OpenIdProvider]:
    """Run a provider on loopback."""
    provider = OpenIdProvider()
    runner = web.AppRunner(provider.application())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = runner.addresses
        provider.url = f"http://{host}:{port}"
        provider.document = {
            "issuer": provider.url,
            "authorization_endpoint": f"{provider.url}/authorize",
            "token_endpoint": f"{provider.url}/token",
            "jwks_uri": f"{provider.url}/keys",
            "userinfo_endpoint": f"{provider.url}/userinfo",
        }
        yield provider
    finally:
        await runner.cleanup()
