"""Delivering a sealed credential: from the vault into the CLI machine, and asking the CLI.

Used by the connect workflow. The plaintext lives in this process only, between the vault and the
host agent's socket. What the CLI kept before is set aside inside the machine itself, so that a
delivery that fails puts it back as it was, rotated tokens included.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from polydev.domain import CredentialId, GuestFile, VmId
from polydev.errors import (
    CredentialsNotAccepted,
    GuestMisbehaved,
    MachineBusy,
    NoSuchMachine,
    NotConnected,
)
from polydev.hostapi import RemoveFiles, WireFile, WriteFiles
from polydev.hosts import Host
from polydev.providers import Provider, files_for_cli_machine
from polydev.store import credentials
from polydev.store.database import Database
from polydev.vault import Vault

log = logging.getLogger("polydev.workflows")

_ASIDE_FOLDER = "/root/.polydev-set-aside"

# Run in the machine with the credentials' path and the place aside. An empty file aside says that
# there was nothing; it is complete as soon as it has its name.
_SET_ASIDE = """set -e
[ -e "$2" ] && exit 0
mkdir -p -m 700 -- "${2%/*}"
if [ -e "$1" ]; then cp -p -- "$1" "$2.new"; else : > "$2.new"; fi
mv -f -- "$2.new" "$2"
"""
_TAKE_BACK = """set -e
[ -e "$2" ] || exit 0
if [ -s "$2" ]; then mv -f -- "$2" "$1"; else rm -f -- "$1" "$2"; fi
"""

_TRIES = 3
_PROGRAM_S = 30.0
_WRITE_S = 30.0


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
        await self._shell(_SET_ASIDE, provider, vm_id)
        for attempt in range(1, _TRIES + 1):
            await self._write(vm_id, files)
            if await self.is_logged_in(provider, vm_id):
                return await self._remove(vm_id, _aside(provider))
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

    async def take_back(self, provider: Provider, vm_id: VmId) -> None:
        """Leave the machine as it was before, if the delivery had begun."""
        try:
            await self._shell(_TAKE_BACK, provider, vm_id)
        except (NoSuchMachine, MachineBusy):
            log.info("%s is not there to take credentials back from", vm_id)

    async def _write(self, vm_id: VmId, files: tuple[GuestFile, ...]) -> None:
        operation = WriteFiles(vm_id=vm_id, files=[WireFile.of(file) for file in files])
        await self.host.run(_operation_id("write", vm_id), operation, _WRITE_S)

    async def _remove(self, vm_id: VmId, path: str) -> None:
        operation = RemoveFiles(vm_id=vm_id, paths=[path])
        await self.host.run(_operation_id("remove", vm_id), operation, _WRITE_S)

    async def _shell(self, script: str, provider: Provider, vm_id: VmId) -> None:
        argv = ["sh", "-c", script, "sh", provider.credentials.path, _aside(provider)]
        output = await self.host.run_program(vm_id, argv, timeout_s=_PROGRAM_S)
        if output.exit_code != 0:
            raise GuestMisbehaved(
                f"The {provider.name} credentials in {vm_id} cannot be set aside or taken back"
            )


def _aside(provider: Provider) -> str:
    return f"{_ASIDE_FOLDER}/{provider.id}"


def _operation_id(what: str, vm_id: VmId) -> str:
    """Writing twice is writing once anyway, so every try has an id of its own."""
    return f"{what}-{vm_id}-{uuid.uuid4().hex[:12]}"
