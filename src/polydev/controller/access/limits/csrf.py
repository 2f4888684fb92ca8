"""Whether the page that had a browser send a request is this controller's own.

A browser adds the sign-in cookie to requests that other pages make, too. It cannot read our
answers for them, so it does not know the CSRF token, and it says in the Origin header whose page it
was.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from polydev.controller.access.caller import RequestInfo
from polydev.shared.errors import NotAllowed

_CSRF_KEY = b"polydev csrf key"
_CSRF_MESSAGE = b"this page was given the token by this controller"


class CsrfGuard:
    """Knows the controller's own names."""

    def __init__(self, own_url: str) -> None:
        """`own_url` is how browsers reach the controller: `https://polydev.example.org`."""
        self._own = own_url
        self._own_host = urlsplit(own_url).netloc

    def check_form(self, asked: RequestInfo) -> None:
        """Of a request that signs somebody in: no other page's. Raises NotAllowed."""
        if asked.origin is not None and not self._is_own(asked.origin, asked.host):
            raise NotAllowed(
                "Another page sent this request",
                hint=f"This controller's own page is {self._own}; see POLYDEV_PUBLIC_URL",
            )

    def check(self, asked: RequestInfo, secret: str) -> None:
        """Of a request that has a sign-in's cookie. Raises NotAllowed."""
        if asked.websocket:
            if asked.origin is None:
                raise NotAllowed("A WebSocket with a cookie needs the header Origin")
            self.check_form(asked)
        elif asked.changes:
            self.check_form(asked)
            if not hmac.compare_digest(
                (asked.csrf or "").encode("utf-8", "surrogatepass"), csrf_token(secret).encode()
            ):
                raise NotAllowed(
                    "This request lacks the right X-CSRF-Token",
                    hint="GET /api/account tells it; scripts use an API token instead of a cookie",
                )

    def _is_own(self, origin: str, host: str) -> bool:
        """The public URL's origin; or the plain name under which it was asked, which `Guard` has
        looked at, unless that name is only to be reached over https."""
        origin, host = origin.lower(), host.lower()
        if origin == self._own:
            return True
        return host != self._own_host and origin == f"http://{host}"


def csrf_token(secret: str) -> str:
    """What a page must send beside the cookie with that secret, and does not reveal it."""
    key = hmac.digest(secret.encode("utf-8", "surrogatepass"), _CSRF_KEY, hashlib.sha256)
    return hmac.digest(key, _CSRF_MESSAGE, hashlib.sha256).hex()
