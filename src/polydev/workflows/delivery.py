"""Delivering a sealed credential: from the vault into the CLI machine, and asking the CLI.

Used by the connect workflow, and by `custody.py`, which looks after credentials later. The
plaintext lives in this process only, between the vault and the host agent's socket. What the CLI
kept before is set aside inside the machine itself, so that a delivery that fails puts it back as
it was, rotated tokens included.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from polydev.domain import CredentialId, GuestFile, VmId, now
from polydev.errors import (
    CredentialsNotAccepted,
    MachineBusy,
    NoSuchFile,
    NoSuchMachine,
    NotConnected,
    PolydevError,
)
from polydev.hostapi import RemoveFiles, WireFile, WriteFiles
from polydev.hosts import Host
from polydev.providers import Provider, files_for_cli_machine
from polydev.store import credentials
from polydev.store.database import Database
from polydev.vault import Vault

log = logging.getLogger("polydev.workflows")

_TRIES = 3
_PROGRAM_S = 30.0
_WRITE_S = 30.0
_LOGOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """Writes credentials into CLI machines."""

    database: Database
    vault: Vault
    host: Host

    async def deliver(self, credential: CredentialId, provider: Provider, vm_id: VmId) -> None:
        """Write a stored credential and check that the CLI counts itself logged in.

        The writing is tried a few times: the login itself must not have been in vain.
        Raises: CredentialsNotAccepted, CredentialDamaged, NotConnected, and what the host says.
        """
        async with self.database.read() as connection:
            row = await credentials.get(connection, credential)
        if row is None:
            raise NotConnected(f"There is no {provider.name} credential {credential}")
        files = files_for_cli_machine(provider, await self.vault.open(row))
        await self._set_aside(provider, vm_id)
        for attempt in range(1, _TRIES + 1):
            await self._write(vm_id, *files)
            if await self.is_logged_in(provider, vm_id):
                async with self.database.write() as connection:
                    await credentials.delivered(connection, credential, vm_id, now())
                return
            log.warning("%s in %s is not logged in (try %d)", provider.name, vm_id, attempt)
        raise CredentialsNotAccepted(
            f"{provider.name} in {vm_id} does not count itself logged in with what was written",
            hint=f"`polydev machine exec {vm_id} {' '.join(provider.status_argv)}` says why",
        )

    async def is_logged_in(self, provider: Provider, vm_id: VmId) -> bool:
        """What the CLI's own status command says."""
        output = await self.host.run_program(
            vm_id, provider.status_argv, env=provider.environment, timeout_s=_PROGRAM_S
        )
        return output.exit_code == 0

    async def kept_in(self, provider: Provider, vm_id: VmId) -> bytes | None:
        """What the CLI keeps in that machine now: a machine's word, not checked yet."""
        return await self._read(vm_id, provider.credentials.path)

    async def withdraw(self, provider: Provider, vm_id: VmId, *, running: bool) -> None:
        """Rid a machine of a provider's credentials; done also when there are none.

        In one that runs the CLI is first asked to give the login back to its provider. That needs
        the network and is the guest's to do, so it may fail and has little time.
        """
        if running and provider.credentials.logout_argv:
            try:
                ended = await self.host.run_program(
                    vm_id,
                    provider.credentials.logout_argv,
                    env=provider.environment,
                    timeout_s=_LOGOUT_S,
                )
                log.info("%s in %s gave its login back: %d", provider.id, vm_id, ended.exit_code)
            except PolydevError as error:
                log.info("%s in %s did not give its login back: %s", provider.id, vm_id, error.code)
        try:
            await self._remove(vm_id, provider.credentials.path, _aside(provider))
        except NoSuchMachine:
            log.info("%s is not there to remove credentials from", vm_id)

    async def settle(self, provider: Provider, vm_id: VmId) -> None:
        """The delivery stands: what was set aside is not needed any more."""
        try:
            await self._remove(vm_id, _aside(provider))
        except (NoSuchMachine, MachineBusy):
            log.info("%s is not there to settle a delivery in", vm_id)

    async def take_back(self, provider: Provider, vm_id: VmId) -> None:
        """Leave the machine as it was before, if the delivery had begun."""
        where, aside = provider.credentials, _aside(provider)
        try:
            before = await self._read(vm_id, aside)
            if before is None:
                return
            if before:
                await self._write(vm_id, GuestFile(where.path, before, where.mode))
                await self._remove(vm_id, aside)
            else:
                await self._remove(vm_id, where.path, aside)
        except (NoSuchMachine, MachineBusy):
            log.info("%s is not there to take credentials back from", vm_id)

    async def _set_aside(self, provider: Provider, vm_id: VmId) -> None:
        """Keep what the CLI has, in the machine itself; a second time keeps the first. An empty
        file says that there was nothing."""
        before = await self._read(vm_id, provider.credentials.path)
        await self._write(vm_id, GuestFile(_aside(provider), before or b"", if_absent=True))

    async def _read(self, vm_id: VmId, path: str) -> bytes | None:
        try:
            return await self.host.read_file(vm_id, path)
        except NoSuchFile:
            return None

    async def _write(self, vm_id: VmId, *files: GuestFile) -> None:
        operation = WriteFiles(vm_id=vm_id, files=[WireFile.of(file) for file in files])
        await self.host.run(_operation_id("write", vm_id), operation, _WRITE_S)

    async def _remove(self, vm_id: VmId, *paths: str) -> None:
        operation = RemoveFiles(vm_id=vm_id, paths=list(paths))
        await self.host.run(_operation_id("remove", vm_id), operation, _WRITE_S)


def _aside(provider: Provider) -> str:
    return f"{provider.credentials.path}.before-connect"


def _operation_id(what: str, vm_id: VmId) -> str:
    """Writing twice is writing once anyway, so every try has an id of its own."""
    return f"{what}-{vm_id}-{uuid.uuid4().hex[:12]}"
