"""Sealed credentials, and the keys that seal them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from polydev.shared.domain.ids import CredentialId, UserId, VmId


class CredentialKind(StrEnum):
    """The way in which a user connected a CLI."""

    LOGIN = "login"
    """Files that the CLI wrote at login."""
    API_KEY = "api_key"
    """API key of the provider, entered by the user."""


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """Row of `credentials`: ciphertext, IV, tag and salt, as base64.

    `key_id` is None in rows that an earlier Node.js controller wrote. Those have no additional
    authenticated data either.
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
    """Result of the last validation by the CLI."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Credential:
    """Row of `credentials` without its sealed content."""

    credential_id: CredentialId
    user_id: UserId
    provider: str
    key_id: str | None
    created_at: datetime
    vm_id: VmId | None
    """CLI machine that it was last written to."""
    expires_at: datetime | None
    """End of the login, if the credential states one."""
    checked_at: datetime | None
    validity: Validity | None
    revoked_at: datetime | None
    """Start of its removal. The sealed content is deleted at this moment."""
    kind: CredentialKind = CredentialKind.LOGIN


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """Row of `shared_secrets`: a secret of all controllers, sealed like credentials."""

    name: str
    sealed: str
    iv: str
    tag: str
    salt: str
    key_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Number of rows that one key seals."""

    credentials: int
    secrets: int


@dataclass(frozen=True, slots=True)
class VaultKey:
    """Row of `vault_keys`: a key id, and a canary to test a key against."""

    key_id: str
    canary: str
    canary_iv: str
    canary_tag: str
    canary_salt: str
    created_at: datetime
