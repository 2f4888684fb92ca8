"""The vault: bindings of sealed rows, and the choice of the key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr

from polydev.controller.telemetry import metrics
from polydev.controller.vault.sealing import SealedBox, Sealer
from polydev.shared.domain import (
    CredentialId,
    CredentialKind,
    SealedCredential,
    SharedSecret,
    UserId,
    VaultKey,
)
from polydev.shared.errors import CredentialDamaged, WrongEncryptionKey
from polydev.shared.hints import Hint

_DERIVATIONS_AT_ONCE = 2

OTHER_KEYS = "POLYDEV_OTHER_ENCRYPTION_KEYS"


@dataclass(frozen=True, slots=True)
class Binding:
    """Identity of a credential, authenticated by the tag, so rows cannot be swapped."""

    credential_id: CredentialId
    user_id: UserId
    provider: str
    kind: CredentialKind = CredentialKind.LOGIN

    @classmethod
    def for_row(cls, row: SealedCredential) -> Binding:
        """Return the binding of a row."""
        return cls(row.credential_id, row.user_id, row.provider, row.kind)

    def authenticated_data(self) -> bytes:
        """Encode the additional authenticated data. The bytes must never change."""
        what = "credential" if self.kind is CredentialKind.LOGIN else str(self.kind)
        return _authenticated_data(what, self.user_id, self.provider, self.credential_id)


class Vault:
    """Seals with one key, opens with any. Created by `unlock`."""

    def __init__(
        self,
        encryption_key: SecretStr,
        key_id: str,
        others: Mapping[str, SecretStr] | None = None,
    ) -> None:
        semaphore = asyncio.Semaphore(_DERIVATIONS_AT_ONCE)
        keys = {**(others or {}), key_id: encryption_key}
        self._sealers = {one: Sealer(secret, semaphore) for one, secret in keys.items()}
        self.key_id = key_id
        """Id of the sealing key."""

    def __repr__(self) -> str:
        return f"Vault({self.key_id!r})"

    @property
    def key_ids(self) -> frozenset[str]:
        """Ids of all keys that it can open with."""
        return frozenset(self._sealers)

    async def seal(
        self, plaintext: bytes, to: Binding, now: datetime, key_id: str | None = None
    ) -> SealedCredential:
        """Seal a credential.

        `key_id`: seal with this key instead of the sealing key. A rotation names its target.
        """
        with_key = key_id or self.key_id
        with metrics.timed(metrics.vault_operations, "seal"):
            box = await self._sealer(with_key).seal(plaintext, to.authenticated_data())
        return SealedCredential(
            credential_id=to.credential_id,
            user_id=to.user_id,
            provider=to.provider,
            encrypted_credentials=box.ciphertext,
            encryption_iv=box.iv,
            encryption_tag=box.tag,
            encryption_salt=box.salt,
            key_id=with_key,
            created_at=now,
            kind=to.kind,
        )

    async def open(self, row: SealedCredential) -> bytes:
        """Return the plaintext of a row.

        Raises:
            WrongEncryptionKey: A key that this vault does not have sealed it.
            CredentialDamaged: A column, the user or the provider differs from what was sealed.
        """
        with metrics.timed(metrics.vault_operations, "open"):
            return await self._open(row)

    async def _open(self, row: SealedCredential) -> bytes:
        plaintext = None
        if row.key_id is None:
            for sealer in self._sealers.values():
                plaintext = await sealer.open(_box(row), None)
                if plaintext is not None:
                    break
        else:
            data = Binding.for_row(row).authenticated_data()
            plaintext = await self._sealer(row.key_id).open(_box(row), data)
        if plaintext is None:
            raise CredentialDamaged(
                f"The stored {row.provider} credential {row.credential_id} does not open: "
                "it was changed, or copied from another user or provider",
                hint=f"Connect {row.provider} again",
            )
        return plaintext

    async def seal_secret(
        self, name: str, plaintext: bytes, now: datetime, key_id: str | None = None
    ) -> SharedSecret:
        """Seal a secret of the controllers, bound to its name. `key_id`: as in `seal`."""
        with_key = key_id or self.key_id
        box = await self._sealer(with_key).seal(plaintext, _authenticated_data("secret", name))
        return SharedSecret(name, box.ciphertext, box.iv, box.tag, box.salt, with_key, now)

    async def open_secret(self, row: SharedSecret) -> bytes:
        """Open a shared secret. Raises WrongEncryptionKey, CredentialDamaged."""
        box = SealedBox(row.sealed, row.iv, row.tag, row.salt)
        data = _authenticated_data("secret", row.name)
        plaintext = await self._sealer(row.key_id).open(box, data)
        if plaintext is None:
            raise CredentialDamaged(
                f"The shared secret '{row.name}' does not open: it was changed",
                hint="Delete its row of shared_secrets. The next start creates a new one",
            )
        return plaintext

    async def canary(self, now: datetime) -> VaultKey:
        """Create the row that later starts test their keys against."""
        data = _authenticated_data("canary", self.key_id)
        box = await self._sealer(self.key_id).seal(b"polydev", data)
        return VaultKey(self.key_id, box.ciphertext, box.iv, box.tag, box.salt, now)

    async def opens_canary(self, row: VaultKey) -> bool:
        """Check whether the sealing key sealed this canary."""
        box = SealedBox(row.canary, row.canary_iv, row.canary_tag, row.canary_salt)
        data = _authenticated_data("canary", row.key_id)
        return await self._sealer(self.key_id).open(box, data) == b"polydev"

    def _sealer(self, key_id: str) -> Sealer:
        try:
            return self._sealers[key_id]
        except KeyError:
            raise WrongEncryptionKey(
                f"{key_id} sealed this, and this controller does not have that key",
                hint=Hint.ADD_OTHER_KEY_OR_RESTART.text(),
            ) from None


def _box(row: SealedCredential) -> SealedBox:
    return SealedBox(
        row.encrypted_credentials, row.encryption_iv, row.encryption_tag, row.encryption_salt
    )


def _authenticated_data(*parts: str) -> bytes:
    return b"polydev-vault-1:" + json.dumps(parts, ensure_ascii=True).encode()
