"""Names and attributes of the cookies.

If the public URL is https, cookies are Secure and their names start with `__Host-`: a browser then
accepts them only from this host over https, so that neither another host of the domain nor an
attacker in the network can replace them. Plain http is for the local machine, where browsers would
not accept such cookies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SIGN_IN = "polydev_sign_in"
OIDC = "polydev_oidc"


@dataclass(frozen=True, slots=True)
class Cookies:
    """Cookie settings of this controller."""

    secure: bool
    sign_in_limit_s: int
    """Max-Age of the sign-in cookie."""

    @property
    def sign_in(self) -> str:
        return self._named(SIGN_IN)

    @property
    def oidc(self) -> str:
        """Name of the cookie during an OpenID sign-in."""
        return self._named(OIDC)

    def get_sign_in(self, cookies: Mapping[str, str]) -> str | None:
        """Return the sign-in's secret from a request's cookies."""
        return cookies.get(self.sign_in)

    def _named(self, name: str) -> str:
        return f"__Host-{name}" if self.secure else name
