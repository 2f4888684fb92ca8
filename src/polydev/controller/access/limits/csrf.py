"""Protect against CSRF: accept cookies only from the controller's own pages.

A browser also sends the sign-in cookie with requests of other sites' pages. Such a page does not
know the CSRF token, since it cannot read our responses, and the Origin header names its site.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from polydev.controller.access.caller import RequestInfo
from polydev.shared.errors import NotAllowed
from polydev.shared.hints import Hint

_CSRF_KEY = b"polydev csrf key"
_CSRF_MESSAGE = b"this page was given the token by this controller"


class CsrfGuard:
    """Checks origins and CSRF tokens."""

    def __init__(self, own_url: str) -> None:
        """Set the URL that browsers use, such as `https://polydev.example.org`."""
        self._own = own_url
        self._own_host = urlsplit(own_url).netloc

    def check_form(self, request: RequestInfo) -> None:
        """Check the origin of a sign-in. Raises NotAllowed."""
        if request.origin is not None and not self._is_own(request.origin, request.host):
            raise NotAllowed(
                "This request comes from another site",
                hint=Hint.SET_PUBLIC_URL.text(url=self._own),
            )

    def check(self, request: RequestInfo, secret: str) -> None:
        """Check a request that has a sign-in cookie. Raises NotAllowed."""
        if request.websocket:
            if request.origin is None:
                raise NotAllowed("A WebSocket with a cookie needs an Origin header")
            self.check_form(request)
        elif request.changes:
            self.check_form(request)
            if not hmac.compare_digest(
                (request.csrf or "").encode("utf-8", "surrogatepass"), csrf_token(secret).encode()
            ):
                raise NotAllowed(
                    "Missing or wrong X-CSRF-Token",
                    hint=Hint.GET_CSRF_TOKEN.text(),
                )

    def _is_own(self, origin: str, host: str) -> bool:
        """Accept the public URL, or plain http at the request's Host.

        The middleware has checked the Host. The public name is not accepted over http if the
        public URL is https.
        """
        origin, host = origin.lower(), host.lower()
        if origin == self._own:
            return True
        return host != self._own_host and origin == f"http://{host}"


def csrf_token(secret: str) -> str:
    """Derive the CSRF token from the cookie's secret without revealing it."""
    key = hmac.digest(secret.encode("utf-8", "surrogatepass"), _CSRF_KEY, hashlib.sha256)
    return hmac.digest(key, _CSRF_MESSAGE, hashlib.sha256).hex()
