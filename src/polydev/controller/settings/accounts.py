"""Settings of accounts: sign-up, sign-in, rate limits, OpenID, Supabase."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from polydev.shared.errors import BadSettings
from polydev.shared.settings.base import Settings, variable

_MIN_JWT_SECRET = 32
"""As long as the hash of HS256. Source: RFC 7518, section 3.2."""


class SignUp(StrEnum):
    """Rules for new accounts."""

    OPEN = "open"
    INVITATION = "invitation"
    CLOSED = "closed"


class AccountSettings(Settings):
    """Sign-up, sign-in, rate limits, OpenID and Supabase."""

    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks of reverse proxies whose `X-Forwarded-For` is trusted."""
    sign_up: SignUp = SignUp.INVITATION
    """Rule for new accounts: `open`, `invitation` or `closed`. An account comes with machines that
    reach the internet, so the default is careful."""
    sign_in_idle_s: float = Field(7 * 86400, gt=0)
    """Time after which an unused sign-in ends."""
    sign_in_limit_s: float = Field(30 * 86400, gt=0)
    """Time after which every sign-in ends."""
    sign_ins_per_hour: int = Field(180, ge=6)
    """Sign-in attempts per hour from one network, a sixth of them at once. One e-mail address gets
    a third of it."""
    sign_ups_per_hour: int = Field(60, ge=6)
    """Sign-ups per hour from one network, a sixth of them at once."""
    connects_per_hour: int = Field(60, ge=6)
    """Connect sessions per hour that one user may start, a sixth of them at once."""

    oidc_issuer: str | None = Field(None, pattern=r"^https?://[^?#@\s]+$")
    """Issuer of an OpenID provider. Polydev reads the discovery document below it."""
    oidc_client_id: str | None = None
    """Client id at the OpenID provider."""
    oidc_client_secret: SecretStr | None = None
    """Client secret at the OpenID provider. Unset: a public client."""
    oidc_name: str = "single sign-on"
    """Name of the OpenID provider on the sign-in page."""

    supabase_url: str | None = Field(
        None, validation_alias=variable("SUPABASE_URL"), pattern=r"^https?://[^/?#@\s]+/?$"
    )
    """A Supabase project whose users may sign in here."""
    supabase_service_key: SecretStr | None = Field(
        None, validation_alias=variable("SUPABASE_SERVICE_KEY")
    )
    """Accepted for compatibility; Polydev does not need it."""
    supabase_jwt_secret: SecretStr | None = Field(
        None, validation_alias=variable("SUPABASE_JWT_SECRET")
    )
    """JWT secret of a Supabase project that signs with a shared secret. Unset: public keys are
    fetched from the project."""

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    def check(self) -> Self:
        """Refuse settings that only fail in combination. Raises BadSettings."""
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise BadSettings(
                "POLYDEV_OIDC_ISSUER and POLYDEV_OIDC_CLIENT_ID need each other",
                hint="Set both, or neither",
            )
        if self.supabase_jwt_secret is not None and self.supabase_url is None:
            raise BadSettings(
                "SUPABASE_JWT_SECRET needs SUPABASE_URL",
                hint="A token names its project, and Polydev compares that with SUPABASE_URL",
            )
        secret = self.supabase_jwt_secret
        if secret is not None and len(secret.get_secret_value()) < _MIN_JWT_SECRET:
            raise BadSettings(
                f"SUPABASE_JWT_SECRET has fewer than {_MIN_JWT_SECRET} characters",
                hint="Copy the whole secret from the project's settings",
            )
        for name, url in (
            ("POLYDEV_OIDC_ISSUER", self.oidc_issuer),
            ("SUPABASE_URL", self.supabase_url),
        ):
            if url is not None and not _is_trustworthy(url):
                raise BadSettings(
                    f"{name} must begin with https://",
                    hint="Plain http is allowed for loopback addresses only",
                )
        return super().check()


def _is_trustworthy(url: str) -> bool:
    """Check that the URL uses https or a loopback address."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
