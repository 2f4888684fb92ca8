"""Fetch an issuer's public keys (JWKS) and verify JWTs with them.

The algorithm named in a token is not trusted: it must be an expected one, and it is only used with
a key of its own type, so that a public key is never used as a shared secret.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from polydev.controller.access.oidc.idp_http import fetch_json
from polydev.shared.errors import IssuerUnreachable, NotSignedIn

PUBLIC_ALGORITHMS: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {
    "RS256": RSAKey,
    "PS256": RSAKey,
    "ES256": ECKey,
    "EdDSA": OKPKey,
}
SHARED_ALGORITHM = "HS256"
LEEWAY_S = 30
"""Tolerated clock difference."""

MAX_TOKEN_CHARACTERS = 16 * 1024
_MAX_AGE_S = 3600
_MIN_REFRESH_S = 60
"""Tokens with random key ids must not trigger a fetch each."""
_MIN_RETRY_S = 5
"""The same, until a fetch has succeeded once."""

Claims = dict[str, object]


class Jwks:
    """An issuer's public keys, fetched on demand."""

    def __init__(self, url: Callable[[], Awaitable[str]], peer: str) -> None:
        self._url = url
        self._peer = peer
        self._keys: list[Key] = []
        self._fetched_at = self._not_before = -float("inf")
        self._failure: IssuerUnreachable | None = None
        self._fetching = asyncio.Lock()

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """Return the signing key. Raises IssuerUnreachable if no fetch ever succeeded."""
        if time.monotonic() - self._fetched_at > _MAX_AGE_S:
            await self._refresh()
        key = self._known(algorithm, key_id)
        if key is None:
            await self._refresh()
            key = self._known(algorithm, key_id)
        return key

    def _known(self, algorithm: str, key_id: str | None) -> Key | None:
        kind = PUBLIC_ALGORITHMS[algorithm]
        candidates = [
            it for it in self._keys if isinstance(it, kind) and _can_verify(it, algorithm)
        ]
        if key_id is not None:
            return next((it for it in candidates if it.kid == key_id), None)
        return candidates[0] if len(candidates) == 1 else None

    async def _refresh(self) -> None:
        async with self._fetching:
            if time.monotonic() < self._not_before:
                if self._failure is not None:
                    raise self._failure
                return
            self._not_before = time.monotonic() + _MIN_REFRESH_S
            try:
                document = await fetch_json(await self._url(), self._peer)
            except IssuerUnreachable as error:
                if self._keys:
                    return  # keep using the known keys
                self._not_before = time.monotonic() + _MIN_RETRY_S
                self._failure = error.with_traceback(None)
                raise
            self._keys, self._failure = _parse_keys(document), None
            self._fetched_at = time.monotonic()


def _parse_keys(document: dict[str, object]) -> list[Key]:
    """Parse keys one by one and skip unknown kinds."""
    listed = document.get("keys")
    keys: list[Key] = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            read = KeySet.import_key_set({"keys": [entry]}).keys
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            continue
        keys += [key for key in read if not isinstance(key, OctKey)]
    return keys


def _can_verify(key: Key, algorithm: str) -> bool:
    jwk = key.as_dict(private=False)
    return jwk.get("use", "sig") == "sig" and jwk.get("alg", algorithm) == algorithm


def read_header(text: str) -> tuple[str, str | None]:
    """Return algorithm and key id of a token, unverified. Raises NotSignedIn."""
    if len(text) > MAX_TOKEN_CHARACTERS:
        raise invalid_token()
    try:
        header = jws.extract_compact(text.encode()).headers()
    except (JoseError, ValueError, TypeError):
        raise invalid_token() from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not (key_id is None or isinstance(key_id, str)):
        raise invalid_token()
    return algorithm, key_id


def verify(text: str, key: Key, algorithm: str, expected: JWTClaimsRegistry) -> Claims:
    """Verify signature and claims of a token; return the claims. Raises NotSignedIn."""
    try:
        token = jwt.decode(text, key, algorithms=[algorithm])
        expected.validate(token.claims)
    except (JoseError, ValueError, TypeError):
        raise invalid_token() from None
    return token.claims


def invalid_token() -> NotSignedIn:
    """Return the one error for all invalid tokens."""
    return NotSignedIn("Invalid or expired token", hint="Sign in again")
