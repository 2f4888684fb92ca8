"""Rotation of ENCRYPTION_KEY: reseal everything with the current key, during operation.

The workflow's subject names the target key, so every controller that runs it uses the same key.
Each row is opened with the key that it names, resealed, and written back unless it was changed
concurrently. So every row can be opened at any moment, an interrupted rotation continues, and a
second one finds nothing to do. See docs/operating.md.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from polydev.controller.access import Caller
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, vault_keys
from polydev.controller.store.queries.system import audit, controllers, shared_secrets
from polydev.controller.vault import Binding, Vault
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.saga import OnPoint
from polydev.shared.domain import KeyUse, SealedCredential, SharedSecret, StepName, VaultKey, now
from polydev.shared.errors import (
    CredentialDamaged,
    KeyInUse,
    NoSuchKey,
    PolydevError,
    WrongEncryptionKey,
)
from polydev.shared.hints import Hint

log = logging.getLogger("polydev.controller.workflows")

ROTATE = "rotate-keys"

BATCH = 20
"""Rows to reseal per transaction: about two seconds of work."""

_NOTHING = KeyUse(0, 0)


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key and its use. `key` is None for rows of an earlier Node.js controller."""

    key: VaultKey | None
    seals: bool
    """This controller seals with it."""
    opens: bool
    """This controller can open with it."""
    use: KeyUse


@dataclass(frozen=True, slots=True)
class RotationState:
    """Progress of a rotation."""

    rotation_id: str
    key_id: str
    left: int
    """Number of rows that other keys still seal."""
    has_ended: bool
    """It has ended. Remaining rows could not be opened."""


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """Lists, rotates and retires encryption keys."""

    database: Database
    vault: Vault
    engine: Engine
    on_point: OnPoint = lambda _step, _point: None

    def register(self) -> None:
        """Register the workflow with the engine, before its start."""
        self.engine.register(ROTATE, self._run)

    async def list_keys(self) -> list[KeyState]:
        """List the keys, newest first, with their use."""
        async with self.database.read() as connection:
            known, uses = (
                await vault_keys.list_all(connection),
                await vault_keys.get_uses(connection),
            )
        found = [
            KeyState(
                key,
                seals=key.key_id == self.vault.key_id,
                opens=key.key_id in self.vault.key_ids,
                use=uses.get(key.key_id, _NOTHING),
            )
            for key in known
        ]
        if None in uses:
            found.append(KeyState(None, seals=False, opens=True, use=uses[None]))
        return found

    async def start(self, caller: Caller) -> RotationState:
        """Start a rotation to this controller's sealing key."""
        target = self.vault.key_id
        rotation_id = f"{target}.{uuid.uuid4().hex[:12]}"
        async with self.database.write() as connection:
            await audit.record(connection, caller.audit_entry("key.rotate", target, None))
        await self.engine.enqueue(ROTATE, rotation_id)
        return await self.state(rotation_id)

    async def state(self, rotation_id: str) -> RotationState:
        """Return the progress of a rotation. Raises NoSuchKey."""
        target = _target(rotation_id)
        has_ended = await self.engine.has_ended(
            ROTATE, rotation_id
        )  # first, so `left` is final if it has ended
        async with self.database.read() as connection:
            known = {key.key_id for key in await vault_keys.list_all(connection)}
            uses = await vault_keys.get_uses(connection)
        if target not in known:
            raise NoSuchKey(f"There is no rotation {rotation_id}")
        left = sum(
            use.credentials + use.secrets for key_id, use in uses.items() if key_id != target
        )
        return RotationState(rotation_id, target, left, has_ended)

    async def retire(self, caller: Caller, key_id: str) -> None:
        """Delete a key that seals nothing any more. Raises NoSuchKey, KeyInUse."""
        async with self.database.write() as connection:
            await vault_keys.lock(connection)
            if key_id not in {key.key_id for key in await vault_keys.list_all(connection)}:
                raise NoSuchKey(f"There is no key {key_id}", hint=Hint.LIST_KEYS.text())
            use = (await vault_keys.get_uses(connection)).get(key_id)
            if use is not None:
                raise KeyInUse(
                    f"{key_id} still seals {use.credentials} credentials and {use.secrets} secrets "
                    "of the controllers",
                    hint=Hint.ROTATE_KEYS.text(),
                )
            holding = await controllers.list_with_key(connection, key_id)
            if holding or key_id in self.vault.key_ids:
                raise KeyInUse(
                    f"{key_id} seals nothing, but {len(holding) or 1} controllers were started "
                    "with it, and would accept it as a new key",
                    hint="Restart them without it first",
                )
            await vault_keys.delete(connection, key_id)
            await audit.record(connection, caller.audit_entry("key.retire", key_id, None))

    async def _run(self, rotation_id: str) -> None:
        target = _target(rotation_id)
        try:
            await self.engine.step(StepName.RESEAL, lambda: self._reseal(target))
        except PolydevError as error:
            log.error("the rotation to %s failed: %s", target, error.line())

    async def _reseal(self, target: str) -> None:
        if target not in self.vault.key_ids:
            raise WrongEncryptionKey(
                f"This controller does not have {target}",
                hint=Hint.ADD_OTHER_KEY.text(),
            )
        after = ""
        self.on_point(StepName.RESEAL, "before")
        while rows := await self._next(target, after):
            sealed = await asyncio.gather(*(self._sealed(row, target) for row in rows))
            async with self.database.write() as connection:
                for old, new in zip(rows, sealed, strict=True):
                    if new is not None:
                        await credentials.update_sealed(connection, old, new)
            after = rows[-1].credential_id
            self.on_point(StepName.RESEAL, "inside")
        async with self.database.read() as connection:
            secrets = await shared_secrets.list_all(connection)
        for secret in secrets:
            if secret.key_id != target:
                await self._replace_secret(secret, target)
        self.on_point(StepName.RESEAL, "after")

    async def _next(self, target: str, after: str) -> Sequence[SealedCredential]:
        async with self.database.read() as connection:
            return await credentials.list_not_sealed_with(connection, target, after, BATCH)

    async def _sealed(self, row: SealedCredential, target: str) -> SealedCredential | None:
        """Reseal a row with the target key. None if it cannot be opened."""
        try:
            plaintext = await self.vault.open(row)
        except (WrongEncryptionKey, CredentialDamaged) as error:
            log.error("cannot reseal credential %s: %s", row.credential_id, error.line())
            return None
        to = Binding.for_row(row)
        return await self.vault.seal(plaintext, to, row.created_at, key_id=target)

    async def _replace_secret(self, secret: SharedSecret, target: str) -> None:
        try:
            plaintext = await self.vault.open_secret(secret)
        except (WrongEncryptionKey, CredentialDamaged) as error:
            log.error("cannot reseal the secret '%s': %s", secret.name, error.line())
            return
        sealed = await self.vault.seal_secret(secret.name, plaintext, now(), key_id=target)
        async with self.database.write() as connection:
            await shared_secrets.update_sealed(connection, secret, sealed)


def _target(rotation_id: str) -> str:
    return rotation_id.partition(".")[0]
