"""Credentials as they are kept: sealed, always; and the keys that seal them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.ids import CredentialId, UserId, VmId


class CredentialKind(StrEnum):
    """How a person connected, and so what is kept of it."""

    LOGIN = "login"
    """What the CLI wrote when the person logged in."""
    API_KEY = "api_key"
    """A key that the person got from the provider and handed in."""


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """A row of `credentials`: ciphertext, IV, tag and salt as base64 (SPEC section 6).

    `key_id` is None for rows that an earlier Node.js controller wrote; those carry no
    additional authenticated data either.
    """

    credential_id: CredentialId
    user_id: UserId
    provider: str
    encrypted_credentials: str
    encryption_iv: str
    encryption_tag: str
    encryption_salt: str
    key_id: str | None
    created_at: datetime
    kind: CredentialKind = CredentialKind.LOGIN


class Validity(StrEnum):
    """What a CLI last said of a credential."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a row of `credentials` says besides what is sealed."""

    credential_id: CredentialId
    user_id: UserId
    provider: str
    key_id: str | None
    created_at: datetime
    vm_id: VmId | None
    """The CLI machine that it was written into last."""
    expires_at: datetime | None
    """When the login ends, if it tells."""
    checked_at: datetime | None
    validity: Validity | None
    revoked_at: datetime | None
    """Since when it is being removed: what was sealed is gone already."""
    kind: CredentialKind = CredentialKind.LOGIN


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """A row of `shared_secrets`: something that all controllers know, sealed like credentials."""

    name: str
    sealed: str
    iv: str
    tag: str
    salt: str
    key_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How much one key seals."""

    credentials: int
    secrets: int


@dataclass(frozen=True, slots=True)
class VaultKey:
    """A row of `vault_keys`: a key that sealed credentials, and a canary to try a key on."""

    key_id: str
    canary: str
    canary_iv: str
    canary_tag: str
    canary_salt: str
    created_at: datetime
