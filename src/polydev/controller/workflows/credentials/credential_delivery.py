"""Delivery of a sealed credential: from the vault into the CLI machine.

The plaintext exists in this process only, between the vault and the host agent's socket. Files that
a delivery changes are backed up inside the machine, so a failed delivery restores them, including
rotated tokens. `providers.credential_files` knows which files to write, and which to remove so that
only this credential counts.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import hibernation
from polydev.controller.vault import Vault
from polydev.shared.domain import CredentialId, CredentialKind, GuestFile, VmId, now
from polydev.shared.errors import (
    CredentialsNotAccepted,
    Failed,
    Invalid,
    MachineBusy,
    NoSuchFile,
    NoSuchMachine,
    NotConnected,
    PolydevError,
)
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import RemoveFiles, WireFile, WriteFiles
from polydev.shared.providers import (
    Change,
    Provider,
    credential_paths,
    plan_install,
    plan_removal,
    read_api_key,
    user_file_paths,
)

log = logging.getLogger("polydev.controller.workflows")

_TRIES = 3
_WRITE_S = 30.0
_LOGOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """Writes credentials into CLI machines, and removes them."""

    database: Database
    vault: Vault
    host: HostClient

    async def deliver(self, credential: CredentialId, provider: Provider, vm_id: VmId) -> None:
        """Write a stored credential, and check with the CLI that it is logged in.

        The write is tried a few times, so the user's login is not lost.
        Raises: CredentialsNotAccepted, CredentialDamaged, NotConnected, SettingsUnreadable, and
        the host's errors.
        """
        async with self.database.read() as connection:
            row = await credentials.find_sealed(connection, credential)
        if row is None:
            raise NotConnected(f"There is no {provider.name} credential {credential}")
        plaintext = await self.vault.open(row)
        found = await self._found(vm_id, credential_paths(provider))
        change = plan_install(provider, row.kind, plaintext, found)
        await self._back_up(vm_id, {path: found[path] for path in change.paths})
        for attempt in range(1, _TRIES + 1):
            await self._make(vm_id, change)
            if await self.is_logged_in(provider, vm_id):
                async with self.database.write() as connection:
                    await credentials.set_delivered(connection, credential, vm_id, now())
                    await hibernation.set_used(connection, vm_id, now())
                return
            log.warning("%s in %s is not logged in (attempt %d)", provider.name, vm_id, attempt)
        raise CredentialsNotAccepted(
            f"{provider.name} in {vm_id} does not accept the credentials",
            hint=Hint.SEE_CLI_STATUS.text(vm_id=vm_id, command=" ".join(provider.status_argv)),
        )

    async def is_logged_in(self, provider: Provider, vm_id: VmId) -> bool:
        """Run the CLI's status command."""
        output = await self.host.run_program(
            vm_id,
            provider.status_argv,
            env=provider.environment,
            timeout_s=provider.status_within_s,
        )
        return output.exit_code == 0

    async def read_stored(
        self, provider: Provider, kind: CredentialKind, vm_id: VmId
    ) -> bytes | None:
        """Read the CLI's credentials from the machine, not checked yet.

        An API key is returned in the form in which it is sealed.
        """
        content = await self._read(vm_id, provider.credential_path(kind))
        if content is None or kind is CredentialKind.LOGIN:
            return content
        return read_api_key(provider, content)

    async def withdraw(
        self, provider: Provider, kind: CredentialKind, vm_id: VmId, *, running: bool
    ) -> None:
        """Remove a provider's credentials from a machine. Idempotent.

        In a running machine, the CLI first logs out at its provider. That needs the network and
        runs in the guest, so it may fail and has little time.
        """
        if running and kind is CredentialKind.LOGIN and provider.credentials.logout_argv:
            await self._log_out(provider, vm_id)
        try:
            found = {
                path: await self._read_or_leave(vm_id, path) for path in user_file_paths(provider)
            }
            await self._make(vm_id, plan_removal(provider, found))
            await self._remove(vm_id, *map(_backup_path, credential_paths(provider)))
        except NoSuchMachine:
            log.info("no credentials to remove: %s is gone", vm_id)

    async def settle(self, provider: Provider, vm_id: VmId) -> None:
        """Delete the backups after a successful delivery."""
        try:
            await self._remove(vm_id, *map(_backup_path, credential_paths(provider)))
        except (NoSuchMachine, MachineBusy):
            log.info("no backups to delete: %s is gone or stopped", vm_id)

    async def revert(self, provider: Provider, vm_id: VmId) -> None:
        """Restore the files from before the delivery, if it had started."""
        try:
            backups = await self._found(
                vm_id, [_backup_path(path) for path in credential_paths(provider)]
            )
            before = {path: backups[_backup_path(path)] for path in credential_paths(provider)}
            stood = [GuestFile(path, it) for path, it in before.items() if it]
            absent = [path for path, it in before.items() if it == b""]
            await self._make(vm_id, Change(tuple(stood), tuple(absent)))
            if stood or absent:
                await self._remove(vm_id, *(path for path, it in backups.items() if it is not None))
        except (NoSuchMachine, MachineBusy):
            log.info("no files to restore: %s is gone or stopped", vm_id)

    async def _log_out(self, provider: Provider, vm_id: VmId) -> None:
        try:
            ended = await self.host.run_program(
                vm_id,
                provider.credentials.logout_argv,
                env=provider.environment,
                timeout_s=_LOGOUT_S,
            )
            log.info("%s in %s logged out: %d", provider.id, vm_id, ended.exit_code)
        except PolydevError as error:
            log.info("%s in %s did not log out: %s", provider.id, vm_id, error.code)

    async def _back_up(self, vm_id: VmId, found: Mapping[str, bytes | None]) -> None:
        """Back up files inside the machine, unless there is a backup already.

        An empty backup stands for a missing file.
        """
        backups = (
            GuestFile(_backup_path(path), it or b"", if_absent=True) for path, it in found.items()
        )
        await self._write(vm_id, *backups)

    async def _found(self, vm_id: VmId, paths: Sequence[str]) -> dict[str, bytes | None]:
        contents = await asyncio.gather(*(self._read(vm_id, path) for path in paths))
        return dict(zip(paths, contents, strict=True))

    async def _make(self, vm_id: VmId, change: Change) -> None:
        if change.files:
            await self._write(vm_id, *change.files)
        if change.removed:
            await self._remove(vm_id, *change.removed)

    async def _read(self, vm_id: VmId, path: str) -> bytes | None:
        try:
            return await self.host.read_file(vm_id, path)
        except NoSuchFile:
            return None

    async def _read_or_leave(self, vm_id: VmId, path: str) -> bytes | None:
        """Read a file. None also if it is unreadable, so the others can still be removed."""
        try:
            return await self._read(vm_id, path)
        except (Failed, Invalid) as error:
            log.info("leaving %s in %s unchanged: %s", path, vm_id, error.code)
            return None

    async def _write(self, vm_id: VmId, *files: GuestFile) -> None:
        operation = WriteFiles(vm_id=vm_id, files=[WireFile.of(file) for file in files])
        await self.host.run(_operation_id("write", vm_id), operation, _WRITE_S)

    async def _remove(self, vm_id: VmId, *paths: str) -> None:
        operation = RemoveFiles(vm_id=vm_id, paths=list(paths))
        await self.host.run(_operation_id("remove", vm_id), operation, _WRITE_S)


def _backup_path(path: str) -> str:
    return f"{path}.before-connect"


def _operation_id(what: str, vm_id: VmId) -> str:
    """Create a random operation id: the operations are idempotent."""
    return f"{what}-{vm_id}-{uuid.uuid4().hex[:12]}"
