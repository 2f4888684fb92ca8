"""Lifecycle of delivered credentials: validate, refresh, export and revoke.

A CLI renews its tokens in its machine, which invalidates the old ones. So validation also copies
the machine's credentials into the vault, if they are of the same account. The machine may be
hostile: its data is limited in size, checked against the provider's schema, and can change only its
own user's credential.

Revocation deletes the sealed content immediately. A workflow then removes the files from the CLI
machine, however long its host is unreachable, and deletes the row last.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from polydev.controller.access import Caller
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit
from polydev.controller.vault import Binding, Vault
from polydev.controller.workflows.credentials.credential_delivery import Delivery
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.log_only_observer import LogOnlyObserver
from polydev.controller.workflows.engine.saga import OnPoint, Saga, Step
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.controller.workflows.machines.resume_on_use import ResumeOnUse
from polydev.shared.domain import (
    Credential,
    CredentialId,
    CredentialKind,
    Machine,
    MachineKind,
    MachineState,
    UserId,
    Validity,
    now,
)
from polydev.shared.errors import MachineBusy, NoSuchCredential, PolydevError
from polydev.shared.providers import (
    Provider,
    check_credentials,
    login_expiry,
    provider,
    same_account,
    same_login,
)

log = logging.getLogger("polydev.controller.workflows")

REVOKE = "revoke-credential"

_VALIDATE_S = 45.0
_REVOKE_S = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a validation."""

    validity: Validity
    reason: str
    refreshed: bool = False
    """The machine had newer credentials, which are in the vault now."""


@dataclass(frozen=True, slots=True)
class CredentialLifecycle:
    """Validates, exports and revokes credentials."""

    database: Database
    vault: Vault
    machines: MachineOperations
    engine: Engine
    resume_on_use: ResumeOnUse
    on_point: OnPoint = lambda _step, _point: None

    def register(self) -> None:
        """Register the workflow with the engine, before its start."""
        step = Step(REVOKE, self.remove, _REVOKE_S)
        saga = Saga(REVOKE, [], [step], LogOnlyObserver(), _REVOKE_S, self.on_point)
        self.engine.register(REVOKE, partial(saga.run, self.engine))

    # -- called by the API ------------------------------------------------------------------------

    async def validate(self, caller: Caller, credential_id: CredentialId) -> Verdict:
        """Ask the CLI whether it is logged in, and store renewed tokens.

        Raises NoSuchCredential.
        """
        credential = await self._get_valid(caller.owner_filter, credential_id)
        try:
            async with asyncio.timeout(_VALIDATE_S):
                verdict = await self._verdict(caller, credential)
        except TimeoutError:
            verdict = _unknown(f"The CLI machine did not answer within {_VALIDATE_S:g} s")
        except PolydevError as error:
            verdict = _unknown(error.line())
        async with self.database.write() as connection:
            await credentials.set_checked(connection, credential_id, verdict.validity, now())
        return verdict

    async def export(
        self, caller: Caller, credential_id: CredentialId
    ) -> tuple[Provider, CredentialKind, bytes]:
        """Return the provider, the kind and the plaintext, to the owner only.

        Raises: NoSuchCredential, CredentialDamaged, WrongEncryptionKey.
        """
        async with self.database.write() as connection:
            await credentials.get(connection, credential_id, caller.user_id)
            row = await credentials.find_sealed(connection, credential_id)
            if row is None:
                raise _revoked(credential_id)
            entry = caller.audit_entry("credential.export", credential_id, caller.user_id)
            await audit.record(connection, entry)
        return provider(row.provider), row.kind, await self.vault.open(row)

    async def revoke(self, caller: Caller, credential_id: CredentialId) -> Credential:
        """Revoke a credential: delete it here now, and in its CLI machine in the background.

        The caller does not wait: the row is deleted once the machine is clean. Raises
        NoSuchCredential.
        """
        async with self.database.write() as connection:
            credential = await credentials.get(connection, credential_id, caller.owner_filter)
            if await credentials.revoke(connection, credential, now()):
                entry = caller.audit_entry("credential.revoke", credential_id, credential.user_id)
                await audit.record(connection, entry)
            credential = await credentials.get(connection, credential_id)
        await self.engine.enqueue(REVOKE, credential_id)
        return credential

    async def restart_lost(self) -> None:
        """Continue revocations that a dead controller or an unreachable host left."""
        async with self.database.read() as connection:
            waiting = await credentials.list_revoking(connection)
        for credential in waiting:
            if not await self.engine.has_ended(REVOKE, credential.credential_id):
                await self.engine.enqueue(REVOKE, credential.credential_id)
                continue
            try:
                await self.remove(credential.credential_id)
            except PolydevError as error:
                log.warning(
                    "cannot remove credential %s yet: %s", credential.credential_id, error.line()
                )

    # -- the step --------------------------------------------------------------------------------

    async def remove(self, subject: str) -> None:
        """Remove a revoked credential from the CLI machine, then its row."""
        async with self.database.read() as connection:
            try:
                credential = await credentials.get(connection, CredentialId(subject))
            except NoSuchCredential:
                return
            owner, which = credential.user_id, credential.provider
            connecting = await sessions.find_live(connection, owner, which)
            replaced = await credentials.find_newest_sealed(connection, owner, which)
        if connecting is not None:
            raise MachineBusy(f"A login to {which} writes the same file")
        found = await self._machine(credential) if replaced is None else None
        if found is not None:
            if found.status.is_usable:  # saved memory expects its disk unchanged
                cause = Actor.for_user(owner, "workflow", "removal of a login")
                found = await self.resume_on_use.ensure_running(cause, found.vm_id)
            running = found.status is MachineState.RUNNING
            about = provider(which)
            delivery = self._delivery(found)
            await delivery.withdraw(about, credential.kind, found.vm_id, running=running)
        async with self.database.write() as connection:
            await credentials.delete_revoked(connection, credential)

    # -- validation -----------------------------------------------------------------------------

    async def _verdict(self, caller: Caller, credential: Credential) -> Verdict:
        about = provider(credential.provider)
        machine = await self._machine(credential)
        if machine is None:
            return _unknown("It is in no CLI machine. Connect again")
        if not machine.status.is_usable:
            return _unknown(f"The CLI machine {machine.vm_id} is {machine.status}")
        machine = await self.resume_on_use.ensure_running(
            Actor.for_caller(caller, "check of a login"), machine.vm_id
        )
        delivery = self._delivery(machine)
        if not await delivery.is_logged_in(about, machine.vm_id):
            message = f"{about.name} in {machine.vm_id} reports that it is not logged in"
            return Verdict(Validity.INVALID, message)
        held = await delivery.read_stored(about, credential.kind, machine.vm_id)
        if held is None:
            return _unknown(f"{about.name} in {machine.vm_id} is logged in by another method")
        if credential.kind is CredentialKind.API_KEY:
            return await self._compared(about, credential, held)
        return await self._taken_back(caller, about, credential, held)

    async def _compared(self, about: Provider, credential: Credential, held: bytes) -> Verdict:
        """Compare an API key with the machine's. Keys are never renewed."""
        async with self.database.read() as connection:
            row = await credentials.find_sealed(connection, credential.credential_id)
        if row is None:
            raise _revoked(credential.credential_id)
        if not same_login(await self.vault.open(row), held):
            return _unknown(f"{about.name} has another API key in its machine")
        message = f"{about.name} has the API key; only a chat shows whether the provider accepts it"
        return Verdict(Validity.VALID, message)

    async def _taken_back(
        self, caller: Caller, about: Provider, credential: Credential, held: bytes
    ) -> Verdict:
        """Store the machine's credentials if they are of the same account."""
        theirs = check_credentials(about, held)
        async with self.database.read() as connection:
            row = await credentials.find_sealed(connection, credential.credential_id)
            owner, which = credential.user_id, credential.provider
            connecting = await sessions.find_live(connection, owner, which)
        if row is None:
            raise _revoked(credential.credential_id)
        if connecting is not None:  # the machine may get another credential soon
            return Verdict(Validity.VALID, f"{about.name} says that it is logged in")
        ours = await self.vault.open(row)
        if same_login(ours, theirs):
            return Verdict(Validity.VALID, f"{about.name} says that it is logged in")
        if not same_account(about, ours, theirs):
            return _unknown(f"{about.name} is logged in to another account")
        binding = Binding.for_row(row)
        sealed = await self.vault.seal(theirs, binding, row.created_at)
        ends = login_expiry(about, theirs)
        async with self.database.write() as connection:
            taken = await credentials.update_sealed(connection, row, sealed, expires_at=ends)
            if taken:
                entry = caller.audit_entry("credential.refresh", row.credential_id, row.user_id)
                await audit.record(connection, entry)
        message = f"{about.name} reports that it is logged in; its renewed tokens are stored"
        return Verdict(Validity.VALID, message, refreshed=taken)

    async def _get_valid(self, bounds: UserId | None, credential_id: CredentialId) -> Credential:
        async with self.database.read(bounds) as connection:
            credential = await credentials.get(connection, credential_id, bounds)
        if credential.revoked_at is not None:
            raise _revoked(credential_id)
        return credential

    async def _machine(self, credential: Credential) -> Machine | None:
        """Find the CLI machine that has the credential."""
        async with self.database.read() as connection:
            if credential.vm_id is None:
                if credential.kind is CredentialKind.API_KEY:  # not delivered yet
                    return None
                # Delivered by a version that did not record the machine.
                owned = await machines.list_for_user(connection, credential.user_id)
                return next((it for it in owned if it.vm_type is MachineKind.CLI), None)
            machine = await machines.find(connection, credential.vm_id)
        return None if machine is None or machine.status.is_gone else machine

    def _delivery(self, machine: Machine) -> Delivery:
        return Delivery(self.database, self.vault, self.machines.hosts.client(machine.host_id))


def _unknown(reason: str) -> Verdict:
    return Verdict(Validity.UNKNOWN, reason)


def _revoked(credential_id: CredentialId) -> NoSuchCredential:
    return NoSuchCredential(f"The credential {credential_id} is revoked")
