"""The cookies' names and what browsers are told about them.

Where the public URL is https, cookies are Secure and their names have the prefix `__Host-`: a
browser then takes them from this very host over https alone, so that no other host of the domain,
and nobody on the way, can put one in their place. Plain http is for one's own machine; there a
browser would not take such cookies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SIGN_IN = "polydev_sign_in"
OIDC = "polydev_oidc"


@dataclass(frozen=True, slots=True)
class Cookies:
    """How cookies are set."""

    secure: bool
    sign_in_limit_s: int
    """Max-Age of the sign-in cookie."""

    @property
    def sign_in(self) -> str:
        return self._named(SIGN_IN)

    @property
    def oidc(self) -> str:
        """The cookie of a browser that is at the OpenID provider."""
        return self._named(OIDC)

    def get_sign_in(self, cookies: Mapping[str, str]) -> str | None:
        """The sign-in's secret among a request's cookies."""
        return cookies.get(self.sign_in)

    def _named(self, name: str) -> str:
        return f"__Host-{name}" if self.secure else name
