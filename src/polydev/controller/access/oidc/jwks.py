"""JWTs that somebody else signed: their public keys, fetched and kept, and what a token says.

The algorithm that a token names decides nothing by itself: it must be one that was expected, and
it is only tried with a key of its own type, so that no public key is ever used as a shared secret.
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
"""By how much clocks may differ."""

MAX_TOKEN_CHARACTERS = 16 * 1024
_MAX_AGE_S = 3600
_MIN_REFRESH_S = 60
"""Tokens with made-up key ids must not have us fetch all the time."""
_MIN_RETRY_S = 5
"""While nothing could be fetched yet."""

Claims = dict[str, object]


class Jwks:
    """An issuer's public keys: fetched when first needed, anew when an unknown one is named."""

    def __init__(self, url: Callable[[], Awaitable[str]], whom: str) -> None:
        self._url = url
        self._whom = whom
        self._keys: list[Key] = []
        self._fetched_at = self._not_before = -float("inf")
        self._failure: IssuerUnreachable | None = None
        self._fetching = asyncio.Lock()

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key that must have signed. Raises IssuerUnreachable if none could be fetched ever."""
        if time.monotonic() - self._fetched_at > _MAX_AGE_S:
            await self._refresh()
        found = self._known(algorithm, key_id)
        if found is None:
            await self._refresh()
            found = self._known(algorithm, key_id)
        return found

    def _known(self, algorithm: str, key_id: str | None) -> Key | None:
        kind = PUBLIC_ALGORITHMS[algorithm]
        fitting = [it for it in self._keys if isinstance(it, kind) and _can_verify(it, algorithm)]
        if key_id is not None:
            return next((it for it in fitting if it.kid == key_id), None)
        return fitting[0] if len(fitting) == 1 else None

    async def _refresh(self) -> None:
        async with self._fetching:
            if time.monotonic() < self._not_before:
                if self._failure is not None:
                    raise self._failure
                return
            self._not_before = time.monotonic() + _MIN_REFRESH_S
            try:
                found = await fetch_json(await self._url(), self._whom)
            except IssuerUnreachable as error:
                if self._keys:
                    return  # what was known goes on to hold
                self._not_before = time.monotonic() + _MIN_RETRY_S
                self._failure = error.with_traceback(None)
                raise
            self._keys, self._failure = _parse_keys(found), None
            self._fetched_at = time.monotonic()


def _parse_keys(found: dict[str, object]) -> list[Key]:
    """Those that can be read, one by one: a key of a kind we do not know spoils no other."""
    listed = found.get("keys")
    keys: list[Key] = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            read = KeySet.import_key_set({"keys": [entry]}).keys
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            continue
        keys += [key for key in read if not isinstance(key, OctKey)]
    return keys


def _can_verify(key: Key, algorithm: str) -> bool:
    told = key.as_dict(private=False)
    return told.get("use", "sig") == "sig" and told.get("alg", algorithm) == algorithm


def read_header(text: str) -> tuple[str, str | None]:
    """Algorithm and key id that a token names, not checked yet. Raises NotSignedIn."""
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
    """What a token says, if that key signed it and it says what is expected. Raises NotSignedIn."""
    try:
        token = jwt.decode(text, key, algorithms=[algorithm])
        expected.validate(token.claims)
    except (JoseError, ValueError, TypeError):
        raise invalid_token() from None
    return token.claims


def invalid_token() -> NotSignedIn:
    """A token that does not hold, whatever is wrong with it."""
    return NotSignedIn("This token is not known, or no longer", hint="Sign in again")
